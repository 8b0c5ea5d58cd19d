"""The deck: slides on why a network stops learning, every picture and number of them computed by desat."""
