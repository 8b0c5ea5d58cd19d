"use strict";
// A page that is one file: its pictures' library and what they show lie in it, compressed.
(() => {
  async function unpacked(id) {
    const octets = desat.octets(document.getElementById(id).textContent);
    return new Response(new Blob([octets]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
  }

  async function begin() {
    const library = document.createElement("script");
    library.textContent = await unpacked("library");
    document.head.append(library);
    const views = JSON.parse(await unpacked("views"));
    await desat.mount(document, async (name) => views[name]);
    document.documentElement.dataset.ready = "";
  }

  if ("DecompressionStream" in window) begin();
  else document.querySelector("noscript").replaceWith("This browser is too old to show the pictures.");
})();
