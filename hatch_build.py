"""What pip install . installs: the files of this folder as a package, so that no names clash with other modules."""

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

MODULES = "__main__", "cli", "encoder", "gpt2", "gpt2_pico", "tf_checkpoint", "utils"
SAME = *(f"{name}.py" for name in MODULES), "models/shakespeare"
FILES = {"picogpt.py": "__init__.py", **{name: name for name in SAME}}


class Package(BuildHookInterface):
    def initialize(self, version, build_data):
        if version != "editable":  # pip install -e . uses the files in place
            build_data["force_include"] |= {source: f"picogpt/{name}" for source, name in FILES.items()}
