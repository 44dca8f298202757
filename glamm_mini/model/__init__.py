"""The model, in the order in which data flows: encoders, projectors, language model, pixel decoder."""

from transformers.utils.versions import require_version

# Up to 5.12 transformers drew SAM's own parameters anew after loading them: answers would be wrong without a word.
require_version("transformers>=5.17.0", 'Older ones load wrong weights silently: pip install -U "transformers>=5.17"')
