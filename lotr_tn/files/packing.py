"""The text of a configuration, most of a small file's header, in a fifth of the characters."""

import base64
import zlib

PREFIX = "zlib:"
"""What a packed text begins with; then comes base 85."""

LONGEST = 1 << 24
"""Bytes of a text, at most."""

PRESET = b"""
{
  "alora_invocation_tokens": null,
  "alpha_pattern": {},
  "arrow_config": null,
  "auto_mapping": null,
  "base_model_name_or_path": "
  "bias": "none",
  "corda_config": null,
  "ensure_weight_tying": false,
  "eva_config": null,
  "exclude_modules": null,
  "fan_in_fan_out": false,
  "inference_mode": true,
  "init_lora_weights": true,
  "layer_replication": null,
  "layers_pattern": null,
  "layers_to_transform": null,
  "loftq_config": {},
  "lora_alpha": 16,
  "lora_bias": false,
  "lora_dropout": 0.05,
  "megatron_config": null,
  "megatron_core": "megatron.core",
  "modules_to_save": [
    "classifier",
    "score"
  ],
  "peft_type": "LORA",
  "peft_version": "0.1
  "qalora_group_size": 16,
  "r": 8,
  "rank_pattern": {},
  "revision": null,
  "target_modules": [
    "q_proj",
    "k_proj",
    "v_proj",
    "o_proj",
    "gate_proj",
    "up_proj",
    "down_proj"
  ],
  "target_parameters": null,
  "task_type": "CAUSAL_LM",
  "trainable_token_indices": null,
  "use_dora": false,
  "use_qalora": false,
  "use_rslora": false
}"""
"""What configurations mostly say, to which a packed one refers. A part of the files' layout."""


def packed(text: str) -> str:
    """A text, compressed, in characters that JSON need not escape; as it is if it is too long."""
    plain = text.encode(errors="surrogatepass")
    if len(plain) > LONGEST:
        return text
    work = zlib.compressobj(9, zdict=PRESET)
    data = work.compress(plain) + work.flush()
    return PREFIX + base64.b85encode(data).decode()


def is_packed(text: str) -> bool:
    """Whether it is a text that was packed."""
    return text.startswith(PREFIX)


def unpacked(text: str) -> str:
    """The text again; a ValueError, whose message is the end of a sentence, where it is damaged.

    Memory of `LONGEST`, whatever the text says.
    """
    work = zlib.decompressobj(zdict=PRESET)
    try:
        data = work.decompress(base64.b85decode(text.removeprefix(PREFIX)), LONGEST + 1)
        found = data.decode(errors="surrogatepass")
    except (ValueError, zlib.error):
        raise ValueError("cannot be decompressed") from None
    if len(data) > LONGEST:
        raise ValueError(f"takes more than {LONGEST} bytes")
    if not work.eof or work.unused_data:
        raise ValueError("is cut short, or goes on after its end")
    return found
