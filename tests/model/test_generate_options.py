"""Whatever option generate takes: mask k belongs to the k-th [SEG] of the ids that come back, from any thread."""

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from small_models import BBOX, SEG, box_set, images, padded, row, small_model
from transformers import GenerationConfig

NEW = 8
IDS, MASK = padded([row(5, "bbox", 9), row(7, 8, 9, 10)], left=True)
BOXES = [box_set(1), None]
BATCH = images(2)


def likely(ids, scores):
    """Makes [SEG] likely, and not sure; and no <bbox>, which a forward pass would want a box for."""
    scores = scores.clone()
    scores[:, SEG] += 4.0
    scores[:, BBOX] = -1e4
    return scores


def ask(model, **options):
    options = {"max_new_tokens": NEW, "eos_token_id": None, "logits_processor": [likely]} | options
    return model.generate(IDS, MASK, **BATCH, boxes=BOXES, **options)


def check(model, out):
    """Masks and states against one forward pass over each prompt with its answer."""
    each, count = len(out.sequences) // len(IDS), 0
    assert len(out.mask_logits) == len(out.low_res) == len(out.states) == len(out.sequences)
    for r, ids in enumerate(out.sequences):
        prompt = IDS[r // each][MASK[r // each]]
        one = {name: value[r // each : r // each + 1] for name, value in BATCH.items()}
        with torch.no_grad():
            whole = model(torch.cat([prompt, ids])[None], **one, boxes=[BOXES[r // each]])
        assert out.seg_steps[r].tolist() == (ids == SEG).nonzero().flatten().tolist()
        torch.testing.assert_close(out.mask_logits[r], whole.mask_logits[0], atol=1e-4, rtol=0)
        at = whole.seg_positions
        torch.testing.assert_close(out.states[r], whole.last_hidden[at[:, 0], at[:, 1]], atol=1e-4, rtol=0)
        count += len(at)
    return count


@pytest.fixture(scope="module", params=["before", "at"])
def model(request):
    return small_model(seg_state=request.param)


TAKEN = {
    "greedy": {},
    "greedy by config": dict(generation_config=GenerationConfig(max_new_tokens=NEW)),
    "sampling": dict(do_sample=True, temperature=1.5, top_k=20),
    "several answers": dict(do_sample=True, num_return_sequences=3),
    "beams": dict(num_beams=3),
    "beams by config": dict(generation_config=GenerationConfig(num_beams=3, max_new_tokens=NEW)),
    "sampled beams": dict(num_beams=3, do_sample=True),
    "all beams": dict(num_beams=3, num_return_sequences=3),
    "some beams": dict(num_beams=4, num_return_sequences=2),
    "no cache": dict(use_cache=False),
    "no cache by config": dict(generation_config=GenerationConfig(use_cache=False, max_new_tokens=NEW)),
    "static cache": dict(cache_implementation="static"),
    "max_length": dict(max_length=25, max_new_tokens=None),
    "one token": dict(max_new_tokens=1, logits_processor=[lambda ids, s: likely(ids, s) + 1e4 * (s == s[:, [SEG]])]),
    "repetition": dict(repetition_penalty=1.3, no_repeat_ngram_size=3),
    "ends": dict(eos_token_id=[2, SEG]),
}


@pytest.mark.parametrize("options", TAKEN.values(), ids=TAKEN)
def test_masks_belong_to_the_ids(model, options):
    torch.manual_seed(1)
    assert check(model, ask(model, **options)) >= (1 if "eos_token_id" in options else 2)


def test_random_options(model):
    """Twenty combinations of what can be combined."""
    choose = torch.Generator().manual_seed(3)

    def one_of(*values):
        return values[int(torch.randint(len(values), (1,), generator=choose))]

    for _ in range(20):
        beams, sample = one_of(1, 1, 2, 3), one_of(True, False)
        options = dict(num_beams=beams, do_sample=sample, num_return_sequences=one_of(1, beams if not sample else 2))
        options["num_return_sequences"] = min(options["num_return_sequences"], beams) if beams > 1 else 1
        options |= dict(
            max_new_tokens=one_of(1, 3, 9), eos_token_id=one_of(None, 2, SEG), use_cache=one_of(True, False)
        )
        options |= dict(return_dict_in_generate=one_of(True, False), cache_implementation=one_of(None, "static"))
        torch.manual_seed(0)
        check(model, ask(model, **options))


REFUSED = {
    "prompt_lookup_num_tokens": dict(prompt_lookup_num_tokens=3),
    "prompt_lookup by config": dict(generation_config=GenerationConfig(prompt_lookup_num_tokens=3)),
    "assistant_model": lambda model: dict(assistant_model=model.language_model),
    "penalty_alpha": dict(penalty_alpha=0.6, top_k=4),
    "num_beam_groups": dict(num_beam_groups=2, num_beams=4, diversity_penalty=1.0),
    "guidance_scale": dict(guidance_scale=1.5),
    "prefill_chunk_size": dict(prefill_chunk_size=4),
    "encoder_repetition_penalty": dict(encoder_repetition_penalty=1.2),
    "custom_generate": dict(custom_generate=lambda model, **kwargs: None),
    "negative_prompt_ids": dict(negative_prompt_ids=IDS),
    "inputs_embeds": dict(inputs_embeds=torch.zeros(2, 3, 32)),
    "past_key_values": dict(past_key_values=()),
    "paged": dict(cache_implementation="paged"),
    "offloaded": dict(cache_implementation="offloaded"),
    "quantized": dict(cache_implementation="quantized"),
    "num_beams": dict(num_beams=0),
    "num_return_sequences": dict(num_return_sequences=0),
    "max_new_tokns": dict(max_new_tokns=3),
}


@pytest.mark.parametrize("options", REFUSED.values(), ids=REFUSED)
def test_what_would_give_other_masks_is_refused(model, options):
    options = options(model) if callable(options) else options
    with pytest.raises(ValueError) as seen:
        ask(model, **options)
    given = options.get("generation_config", GenerationConfig()).prompt_lookup_num_tokens
    named = "prompt_lookup_num_tokens" if given else next(iter(options))
    assert named in str(seen.value) or "quanto" in str(seen.value)


def test_what_generate_can_tell_besides(model):
    out = ask(model, return_dict_in_generate=True, output_scores=True, output_logits=True)
    assert len(out.scores) == len(out.logits) == NEW and out.scores[0].shape == (2, model.config.text.vocab_size)
    beams = ask(model, num_beams=2, return_dict_in_generate=True, output_scores=True)
    assert beams.sequences_scores.shape == (2,) and beams.beam_indices.shape == (2, NEW)
    assert isinstance(out.to_tuple(), tuple) and ask(model).scores is None


def test_a_call_leaves_the_generation_config_as_it_was(model):
    own, given = copy.deepcopy(model.generation_config), GenerationConfig(num_beams=2, max_new_tokens=3)
    before = given.to_dict()
    ask(model, generation_config=given)
    ask(model, num_beams=2)
    assert given.to_dict() == before and model.generation_config.to_dict() == own.to_dict()


def test_a_row_without_image_has_no_masks(model):
    """Beside rows with images a [SEG] in it would otherwise point at the first image."""
    ids, mask = padded([row(5, 9), row(7, 8, image=False)], left=True)
    out = model.generate(
        ids, mask, **images(1), image_index=[0, -1], max_new_tokens=4, eos_token_id=None, logits_processor=[likely]
    )
    assert (out.sequences[1] == SEG).any() and len(out.states[1]) == int((out.sequences[1] == SEG).sum())
    assert len(out.low_res[1]) == len(out.mask_logits[1]) == 0 < len(out.mask_logits[0])


def test_eight_threads_get_what_one_gets(model):
    """One model, several questions at once: no state is anybody else's."""
    prompts = [row(5, "bbox", 9), row(7, 8), row(9, 10, 11), row(12, 13, 14, 15)]

    def one(k):
        box = [box_set(1, k)] if k % 4 == 0 else None
        options = dict(max_new_tokens=NEW, eos_token_id=None, logits_processor=[likely], num_beams=1 + k // 4)
        return model.generate(prompts[k % 4][None], **images(1, k), boxes=box, **options)

    alone = [one(k) for k in range(8)]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(one, range(8)))
    for a, b in zip(alone, together, strict=True):
        assert torch.equal(a.sequences, b.sequences)
        torch.testing.assert_close(a.mask_logits[0], b.mask_logits[0], atol=1e-5, rtol=0)


def test_a_model_that_has_answered_can_be_copied_and_pickled():
    model = small_model()
    out = ask(model)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        again = ask(other)
        assert torch.equal(again.sequences, out.sequences)
        torch.testing.assert_close(again.mask_logits[0], out.mask_logits[0], atol=1e-6, rtol=0)
    assert torch.equal(pickle.loads(pickle.dumps(out)).mask_logits[0], out.mask_logits[0])
