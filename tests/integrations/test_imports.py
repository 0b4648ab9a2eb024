"""What importing a door costs."""

import subprocess
import sys


def test_dynamo_is_left_to_who_compiles():
    code = """
import sys
import orchard_jit.distributed
import orchard_jit.integrations.bert_padding
import orchard_jit.integrations.flash_attn
import orchard_jit.integrations.flex
import orchard_jit.integrations.routing
assert not {"torch._dynamo", "sympy"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True)
