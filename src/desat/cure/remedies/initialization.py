"""initialization: weights drawn anew, so that the signal keeps its variance from layer to layer."""

from collections.abc import Iterator

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from desat.cure.data_driven import make_critical, make_unit_variance
from desat.cure.default_weights import apply_default
from desat.cure.drawing import (
    DRAWN,
    LAYERS,
    biases,
    draw,
    generator,
    has_forget_gate,
    is_computed,
    matrices,
    set_forget_bias,
)
from desat.cure.family import Change, Choice, Family
from desat.cure.layer_gain import LayerGain, LayerGains
from desat.cure.order import has_weights, modules, of_remedy
from desat.cure.patient import Patient

_KINDS = {"xavier": "uniform", "he": "normal", "lecun": "normal", "orthogonal": "orthogonal"}

_DATA_DRIVEN = {"lsuv": make_unit_variance, "critical": make_critical}


def apply_initialization(patient: Patient, value: str, number: float | None) -> list[Change]:
    """Draw the weights of linear, convolutional, recurrent and attention layers anew and set their biases to zero.

    xavier: uniform within gain * sqrt(6 / (fan_in + fan_out)) (Glorot and Bengio 2010, equation 16). he: normal with
    standard deviation gain / sqrt(fan_in) (He et al. 2015, equation 10). orthogonal: gain times an orthogonal matrix
    (Saxe et al. 2014). lecun: normal with standard deviation 1 / sqrt(fan_in), without a gain (LeCun et al. 1998,
    section 4.6), as SELU needs it. The gain is measured from the curves of the nonlinearities around the layer, see
    LayerGains; where what feeds a layer has f(0) other than 0, as the sigmoid's 1/2, the bias takes that away.

    Of a recurrent layer each gate's matrix is drawn by itself: the input's as above, the recurrent one with gain 1, by
    orthogonal as an orthogonal matrix (Saxe et al. 2014, Le et al. 2015), else uniform by xavier. Of multi-head
    attention the projections are drawn with gain 1, by xavier with the fans of the whole matrix as torch does it. lsuv,
    critical: see desat.cure.data_driven; they begin with orthogonal. torch: see desat.cure.default_weights.
    forget-bias: the bias of an LSTM's forget gate is the number and nothing else changes (Gers et al. 2000; Jozefowicz
    et al. 2015, section 5), and that of a GRU's update gate, which keeps the old state in torch's GRU.
    """
    remedy = f"initialization={value}"
    if value == "torch":
        return apply_default(patient.model, remedy)
    if value == "forget-bias":
        return list(_with_forget_bias(patient.model, 1.0 if number is None else number))
    if value in _DATA_DRIVEN:
        if patient.anatomy is None:
            return [Change(remedy, "", "weights", "weights", refused=patient.blind)]
        changes = list(_drawn(patient, "orthogonal", remedy, LayerGains(patient), alike=True))
        layers = {change.site for change in changes if change.refused is None}
        told = _DATA_DRIVEN[value](patient, layers)
        return [_told(change, told.get(change.site)) for change in changes]
    return list(_drawn(patient, value, remedy, LayerGains(patient)))


def _told(change: Change, after: str | None) -> Change:
    return change if after is None else Change(change.remedy, change.site, change.before, after)


def _drawn(patient: Patient, value: str, remedy: str, gains: LayerGains, alike: bool = False) -> Iterator[Change]:
    """Draw each module that has weights; alike: all with gain 1 and without offsets."""
    source = generator()
    kept = _parameters_of_others(patient.model)
    seen: set[int] = set()
    for path, module in list(modules(patient.model)):
        if not has_weights(module) or of_remedy(path):
            continue
        before = type(module).__name__
        refused = _refusal(module, kept)
        own = {id(parameter) for parameter in module.parameters(recurse=False)}
        if refused is not None:
            yield Change(remedy, path, before, before, refused=refused)
        elif not own & seen:
            seen |= own
            known = LayerGain() if alike else gains.of(path, module) if isinstance(module, LAYERS) else LayerGain()
            yield Change(remedy, path, before, _draw(module, value, known, source))


@torch.no_grad()
def _draw(module: nn.Module, value: str, known: LayerGain, source: torch.Generator) -> str:
    """Draw all matrices of a module, and set its biases; returns what it is then."""
    told = {}
    for matrix in matrices(module):
        gain = known.gain if matrix.gain is None else matrix.gain
        kind = _KINDS[value]
        if matrix.recurrent and value != "orthogonal":
            kind = "uniform"
        told["recurrent weights" if matrix.recurrent else "weights"] = draw(
            matrix, kind, 1.0 if value == "lecun" else gain, source
        )
    for bias in biases(module):
        bias.zero_()
    offset = "" if value == "lecun" else _take_away(module, known.offset)
    words = ", ".join(f"{what} {how}" for what, how in told.items())
    return f"{type(module).__name__} with {words}{offset}"


def _take_away(module: nn.Module, offset: float) -> str:
    """Let the bias take away what a constant in all inputs adds; what it says of it."""
    bias = getattr(module, "bias", None)
    if offset == 0.0 or bias is None or getattr(module, "transposed", False):
        return ""
    bias.copy_(-offset * module.get_parameter("weight").flatten(1).sum(dim=1))
    return f", biases that take {offset:.4g} from each input"


def _parameters_of_others(model: nn.Module) -> set[int]:
    """The ids of the parameters that belong to modules whose weights are not drawn."""
    others = [module for _, module in modules(model) if not isinstance(module, DRAWN)]
    return {id(parameter) for module in others for parameter in module.parameters(recurse=False)}


def _refusal(module: nn.Module, kept: set[int]) -> str | None:
    """Why the weights of a module must stay, if they must; kept: the ids of parameters that are not drawn."""
    if isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
        return "an embedding sums over no inputs: initialization=torch draws it"
    if not isinstance(module, DRAWN):
        return "only linear, convolutional, recurrent and attention layers are drawn"
    own = list(module.parameters(recurse=False))
    if is_computed(module):
        return "its weights are computed from other parameters"
    if any(is_lazy(parameter) for parameter in own):
        return "its shape is known after the first forward pass"
    for weight in own:
        if weight.is_meta or not weight.is_floating_point():
            return f"weights of {weight.dtype} on {weight.device} are not drawn"
    if any(not parameter.requires_grad for parameter in own if parameter.dim() >= 2):
        return "its weights are frozen, so they are meant to stay"
    if any(id(parameter) in kept for parameter in own):
        return "it shares its weights with a module that is not drawn"
    return None


def _with_forget_bias(model: nn.Module, value: float) -> Iterator[Change]:
    remedy = f"initialization=forget-bias:{value:g}"
    for path, module in modules(model):
        if not isinstance(module, (nn.RNNBase, nn.RNNCellBase)):
            continue
        before = type(module).__name__
        refused = _no_forget_bias(module)
        if refused is None:
            set_forget_bias(module, value)
        gate = "forget" if "LSTM" in before else "update"
        after = before if refused else f"{before} with a bias of {value:g} in the {gate} gate"
        yield Change(remedy, path, before, after, refused=refused)


def _no_forget_bias(module: nn.RNNBase | nn.RNNCellBase) -> str | None:
    if not has_forget_gate(module):
        return "it has no gates"
    if not module.bias:
        return "it has no biases"
    if not all(parameter.requires_grad for parameter in module.parameters(recurse=False)):
        return "its weights are frozen, so they are meant to stay"
    return None


INITIALIZATION = Family(
    "initialization",
    (
        Choice("xavier", "uniform, by fan-in and fan-out (Glorot and Bengio 2010)"),
        Choice("he", "normal, by fan-in and the gain of the nonlinearity (He et al. 2015)"),
        Choice("lecun", "normal, by fan-in alone (LeCun et al. 1998)"),
        Choice("orthogonal", "orthogonal matrices, the recurrent ones too (Saxe et al. 2014)"),
        Choice("lsuv", "orthogonal, scaled to a variance of 1 on a real batch (Mishkin and Matas 2016)"),
        Choice("critical", "forward variance and backward gain 1 on a real batch (Schoenholz et al. 2017)"),
        Choice("forget-bias", "bias of the forget gate of an LSTM (Gers et al. 2000)", "optional", 1.0),
        Choice("torch", "what PyTorch draws when a layer is made"),
    ),
    apply_initialization,
)
