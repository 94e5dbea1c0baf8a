import json
from pathlib import Path

import jsonschema
import pytest
import ray.autoscaler
import yaml

CLUSTER = Path(__file__).parents[1] / "cluster"


@pytest.mark.parametrize("path", sorted(CLUSTER.glob("*.yaml")), ids=lambda path: path.name)
def test_launcher_files_pass_rays_schema(path):
    schema = Path(ray.autoscaler.__file__).with_name("ray-schema.json")
    described = yaml.safe_load(path.read_text())
    jsonschema.validate(described, json.loads(schema.read_text()))
    assert described["head_node_type"] in described["available_node_types"]
    assert "--dashboard-host=127.0.0.1" in " ".join(described["head_start_ray_commands"])


def test_the_schema_refuses_an_unknown_key():
    schema = json.loads(Path(ray.autoscaler.__file__).with_name("ray-schema.json").read_text())
    described = yaml.safe_load((CLUSTER / "aws.yaml").read_text())
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**described, "max_wrokers": 3}, schema)
