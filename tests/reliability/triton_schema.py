"""Run where `tritonclient[grpc]` is: print the schema of Triton's model configuration, or read configurations by it.

python triton_schema.py                 the messages below, as tests/deploy/triton_schema.json has them
python triton_schema.py CONFIG...       each config.pbtxt as protobuf reads it, as JSON
"""

from __future__ import annotations

import json
import sys

from google.protobuf import json_format, text_format
from tritonclient.grpc import model_config_pb2

MESSAGES = ("ModelConfig", "ModelInput", "ModelOutput", "ModelInstanceGroup", "ModelDynamicBatching", "ModelParameter")
KINDS = {8: "bool", 9: "string", 11: "message", 14: "enum"}  # of FieldDescriptor; the others are numbers


def described(field):
    """What a field holds: the name of a message, the names of an enumeration, or a kind; and whether it may repeat."""
    kind = KINDS.get(field.type, "number")
    if kind == "message":
        kind = field.message_type.name
    elif kind == "enum":
        kind = [value.name for value in field.enum_type.values]
    return [kind, field.is_repeated if hasattr(field, "is_repeated") else field.label == field.LABEL_REPEATED]


def schema():
    config = model_config_pb2.ModelConfig.DESCRIPTOR
    messages = [getattr(model_config_pb2, name).DESCRIPTOR for name in MESSAGES]
    messages.append(config.fields_by_name["parameters"].message_type)  # an entry of a map
    return {message.name: {field.name: described(field) for field in message.fields} for message in messages}


def read(path):
    with open(path, encoding="utf-8") as file:
        config = text_format.Parse(file.read(), model_config_pb2.ModelConfig())
    return json_format.MessageToDict(config, preserving_proto_field_name=True)


if __name__ == "__main__":
    print(json.dumps([read(path) for path in sys.argv[1:]] if sys.argv[1:] else schema()))
