"""A task against SkyPilot's own schema: python skypilot_schema.py FOLDER TASK.yaml, which prints what is wrong.

FOLDER has SkyPilot without the packages that it needs: only its schemas are imported.
"""

import sys
import types

import jsonschema
import yaml

folder, task = sys.argv[1:]
for name in ("sky", "sky.server", "sky.skylet", "sky.utils"):
    package = types.ModuleType(name)
    package.__path__ = [f"{folder}/{name.replace('.', '/')}"]
    package.__version__ = "0"
    sys.modules[name] = package
# These two import half of SkyPilot. The schemas ask them for the words of `wait_for`, and for the daemons of a server.
autostop, daemons = types.ModuleType("sky.skylet.autostop_lib"), types.ModuleType("sky.server.daemons")
autostop.AutostopWaitFor = types.SimpleNamespace(supported_modes=list)
daemons.INTERNAL_REQUEST_DAEMONS = []
sys.modules |= {module.__name__: module for module in (autostop, daemons)}
from sky.utils import schemas  # noqa: E402 (of the packages above)

with open(task) as file:
    content = yaml.safe_load(file)
for schema, part in ((schemas.get_task_schema(), content), (schemas.get_resources_schema(), content["resources"])):
    for error in jsonschema.Draft7Validator(schema).iter_errors(part):
        print(f"{'.'.join(map(str, error.path))}: {error.message}")
