"""Our model against the official one, number by number: same weights, same inputs, float32 on the CPU."""

import pytest
import torch
from reference_case import PARTS, check, weights

from glamm_mini.checkpoints.official import official_to_ours

FEATURES = 1e-4
LOGITS = 1e-3
GRADIENTS = 5e-4
LOGIT_LIKE = ("logits", "masks", "iou_pred", "loss", "margin")


def tolerance(name: str) -> float:
    """1e-4 for features and embeddings, 1e-3 for logits, masks and losses."""
    return LOGITS if any(word in name.split("/")[-1] for word in LOGIT_LIKE) else FEATURES


@pytest.mark.parametrize("part", PARTS)
def test_the_case_holds_numbers_for_every_part(case, part):
    assert case.names(part), f"{case.folder} has no {part}.npz or an empty one"
    assert case.meta.get(part), f"meta.json of {case.folder} says nothing about {part}"


def test_configuration_names_the_same_hidden_states(case, model):
    vision = case.meta["vision"]
    assert set(vision["region_levels"]) <= set(model.config.region_layers)
    assert model.config.vision.num_hidden_layers + 1 == vision["n_hidden_states"]


def test_vision(case, computed, vision_name):
    check(case, "vision", vision_name, computed.vision[vision_name], FEATURES)


def test_region(case, computed, region_name):
    check(case, "region", region_name, computed.region[region_name], FEATURES)


def test_splice(case, computed, splice_name):
    check(case, "splice", splice_name, computed.splice[splice_name], FEATURES)


def test_train(case, computed, train_name):
    tag, name = train_name.split("/", 1)
    ours = computed.train(tag)
    if not name.startswith("grad/"):
        check(case, "train", train_name, ours[name], tolerance(name))
        return
    gradient = ours["gradients"][official_to_ours(name.removeprefix("grad/"))]
    # A gradient's entries are compared on the scale of its largest: small ones are sums that nearly cancel.
    scale = max(float(gradient.abs().max()), 1e-8)
    counts = (f"{train_name}__shape", f"{train_name}__step")
    stored = {
        key: value if key in counts else value / scale
        for key, value in case.arrays("train").items()
        if key.startswith(train_name)
    }
    agrees, worst = weights.compare(stored, train_name, (gradient / scale).numpy(), GRADIENTS, GRADIENTS)
    assert agrees, f"{train_name}: largest difference {worst:.3g} of the largest entry"


def test_gradient_norms(case, computed, gradient_tag):
    gradients = computed.train(gradient_tag)["gradients"]
    wrong = []
    for name, norm in case.meta["train"][gradient_tag]["grad_norms"].items():
        gradient = gradients[official_to_ours(name)]
        ours = 0.0 if gradient is None else float(torch.linalg.vector_norm(gradient))
        if abs(ours - norm) > GRADIENTS * abs(norm) + 1e-6:
            wrong.append(f"{name}: {ours:.6g}, reference {norm:.6g}")
    assert not wrong, "\n".join(wrong)


def test_generate(case, computed, generate_name):
    tag, name = generate_name.split("/", 1)
    ours = computed.generate(tag)
    if name == "mask_area":
        near = (ours["pred_masks"].abs() < LOGITS).flatten(1).sum(1)
        difference = (ours[name] - torch.from_numpy(case.arrays("generate")[generate_name])).abs()
        assert bool((difference <= near).all()), f"{generate_name}: areas differ by {difference.tolist()} pixels"
        return
    check(case, "generate", generate_name, ours[name], tolerance(name))
    if name == "sequences":
        assert ours["seg_positions"].tolist() == case.meta["generate"][tag].get("seg_positions", [])
