"""What ms-swift makes of a file of messages: python swift_labels.py MODEL TEMPLATE LOSS_SCALE FILE OUT.

It runs in outputs/swift-env. OUT gets one JSON object a row, with the tokens and labels that `swift sft` would train on.
"""

import json
import sys

from swift.dataset import load_dataset
from swift.model import get_processor
from swift.template import get_template

model, name, loss_scale, file, out = sys.argv[1:]
template = get_template(get_processor(model, model_type="llama"), template_type=name, loss_scale=loss_scale)
template.set_mode("train")
with open(out, "w") as written:
    for row in load_dataset(file, shuffle=False)[0]:
        encoded = template.encode(row)
        written.write(json.dumps({key: list(encoded[key]) for key in ("input_ids", "labels")}) + "\n")
