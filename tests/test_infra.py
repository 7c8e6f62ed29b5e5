"""infra/: hosts of this machine for real, AWS against moto on loopback with an old provider and against today's
schema, the guard, a linter."""

import base64
import datetime
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import yaml

from cookbook import ROOT, UserError, inventory
from cookbook.tools import bootstrapped, infra, leaks, prices, terraform
from tests.helpers import CLEAN, run_cookbook
from tests.requirements import skip
from tests.test_hosts import links_namespaces_and_mounts, local_hosts, needs_hosts

if not shutil.which("terraform"):
    skip("terraform", "terraform is missing: infra/ cannot be tested (see make doctor)", allow_module_level=True)

AWS = ROOT / "infra/aws"
PROVIDER = "5.100.0"  # the newest that could be had here; infra/ asks for 6


# ---- this machine


def make(*words, status=0):
    done = subprocess.run(["make", *words], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == (2 if status else 0), done.stdout + done.stderr
    return done.stdout + done.stderr


@needs_hosts
@pytest.mark.full
def test_up_a_recipe_on_it_and_down(tmp_path):
    """The whole circle, as a user types it; and nothing of it is left."""
    before = links_namespaces_and_mounts()
    words = ["TARGET=local", f"ARGS=infra.folder={tmp_path}/machines infra.variables.services=[dask]"]
    output = make("infra-up", *words)
    assert "2 added" in output
    assert f'make recipe-dask ARGS="cluster=hosts cluster.inventory={tmp_path}/machines" uses its running' in output
    assert inventory.access_to(tmp_path / "machines/hosts/services", "dask")["address"].startswith("tls://10.77.")
    assert f'make recipe-pytorch ARGS="cluster=hosts cluster.inventory={tmp_path}/machines" runs on it' in output
    assert "nothing to change" in make("infra-up", *words), "a second time there is nothing to do"
    assert "2 resources" in make("infra-status", *words)
    recipe = ["recipe=pytorch", "cluster=hosts", f"cluster.inventory={tmp_path}/machines", "recipe.num_epochs=2"]
    content, _, _ = run_cookbook(*recipe, output_root=tmp_path / "out")
    assert {worker["host"] for worker in content["workers"]} == {"host1", "host2"}
    assert "nothing is left" in make("infra-down", *words)
    assert links_namespaces_and_mounts() - before == set()
    assert list((tmp_path / "machines/hosts").iterdir()) == []
    assert not (tmp_path / "machines/inventory.yaml").exists()


@needs_hosts
def test_an_apply_that_was_killed_can_be_cleaned_up(tmp_path):
    words = [
        sys.executable,
        "-m",
        "cookbook.tools.infra",
        "up",
        "local",
        f"infra.folder={tmp_path}",
        "infra.variables.num_hosts=40",
    ]
    up = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 600
    while not (tmp_path / "hosts/key").exists() and up.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    assert (tmp_path / "hosts/key").exists(), "no host was begun"
    os.killpg(up.pid, 9)
    up.wait()
    (tmp_path / ".terraform.tfstate.lock.info").unlink(missing_ok=True)
    target = infra.Target("local", [f"infra.folder={tmp_path}"])
    hosts = local_hosts.Hosts(tmp_path / "hosts", num_hosts=40)
    subprocess.run([sys.executable, ROOT / "infra/local/hosts.py", "down", tmp_path / "hosts"], check=True)
    target.down()
    assert hosts.bridge not in local_hosts.sh("ip", "-br", "link")
    assert hosts.id not in local_hosts.sh("ip", "netns", "list")


def test_two_at_once(tmp_path):
    from filelock import FileLock

    with FileLock(tmp_path / ".infra.lock"):
        output = make("infra-up", "TARGET=local", f"ARGS=infra.folder={tmp_path}", status=2)
    assert f"another make infra-... is at work on {tmp_path}: wait for its end" in output


def test_terraform_test(tmp_path):
    folder = shutil.copytree(
        ROOT / "infra/local", tmp_path / "local", ignore=shutil.ignore_patterns(".terraform*", "*.tfstate*", "hosts")
    )
    for words in (["init", "-input=false"], ["test", "-no-color"]):
        done = subprocess.run(["terraform", *words], cwd=folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    assert "3 passed, 0 failed" in done.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["up", "nowhere"], "TARGET=nowhere does not exist. There are: aws, eks, gcp, gke, kubernetes, local"),
        (["up", "local", "infra.variables.num_hosts=0"], "num_hosts must be a whole number from 1 to 50"),
        (
            ["up", "local", "infra.variables.hosts=3"],
            "Could not override 'infra.variables.hosts'. There are: num_hosts, slots, services",
        ),
        (["up", "local", "infra.variables.services=[horovod]"], "services are recipes of Spark, Dask or Ray"),
    ],
)
def test_words_that_make_no_sense(tmp_path, words, message):
    words += [f"infra.folder={tmp_path}"] if words[1] == "local" else []
    done = subprocess.run(
        [sys.executable, "-m", "cookbook.tools.infra", *words], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert message in done.stderr


def test_no_terraform(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "cookbook.tools.infra", "up", "local"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**CLEAN, "PATH": str(tmp_path)},
    )
    assert "terraform: missing" in done.stderr
    assert "HashiCorp's package source" in done.stderr


def test_terraform_is_formatted():
    done = subprocess.run(["terraform", "fmt", "-check", "-recursive", ROOT / "infra"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


# ---- AWS


@pytest.fixture(scope="module")
def moto(tools, tmp_path_factory):
    """An AWS on loopback: (its address, the environment that terraform and boto3 want)."""
    folder = tmp_path_factory.mktemp("moto")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    environment = {"MOTO_IAM_LOAD_MANAGED_POLICIES": "true", "PATH": os.environ["PATH"]}
    with open(folder / "log", "w") as log:
        process = subprocess.Popen(
            [tools.with_name("moto_server"), "-H", "127.0.0.1", "-p", str(port)],
            env=environment,
            stdout=log,
            stderr=log,
        )
    # Where packagers put providers. Without a mirror terraform fetches the provider itself.
    mirrors = [path.parents[3] for path in Path("/").glob(f"opt/*/registry.terraform.io/hashicorp/aws/{PROVIDER}")]
    where = f'filesystem_mirror {{\n    path = "{mirrors[0]}"\n  }}' if mirrors else "direct {}"
    (folder / "rc").write_text(f"provider_installation {{\n  {where}\n}}\n")
    own = {
        "TF_CLI_CONFIG_FILE": str(folder / "rc"),
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_ENDPOINT_URL": url,
    }
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            break
        except OSError:
            time.sleep(0.1)
    yield url, own
    process.kill()
    process.wait()


def for_moto(folder, url, target="aws", more=""):
    """A copy of a target of AWS's that asks for the provider that can be had here, and sends its calls to `url`."""
    shutil.copytree(ROOT / f"infra/{target}", folder, ignore=shutil.ignore_patterns(".*", "*.tfstate*"))
    for name in ("bootstrap.sh", "expiry.py"):
        shutil.copy(ROOT / f"infra/{name}", folder.parent)
    # moto heeds a bucket's policy without its condition, which would refuse everything.
    if target == "aws":
        storage = folder / "storage.tf"
        storage.write_text(storage.read_text().replace('effect    = "Deny"', 'effect    = "Allow"'))
        # moto hands the template's own tags back as those that it gives to machines.
        main = folder / "main.tf"
        text = main.read_text()
        template = 'resource "aws_launch_template" "host" {'
        assert template in text
        ignored = "  lifecycle {\n    ignore_changes = [tag_specifications]\n  }\n"
        main.write_text(text.replace(template, f"{template}\n{ignored}"))
    (folder / "more.tf").write_text(more)
    services = ("ec2", "iam", "s3", "sts", "ssm", "budgets", "scheduler", "eks", "efs", "kms")
    endpoints = "".join(f'    {name} = "{url}"\n' for name in services)
    (folder / "test_override.tf").write_text(f"""
terraform {{
  required_providers {{
    aws = {{
      source  = "hashicorp/aws"
      version = "{PROVIDER}"
    }}
  }}
}}
provider "aws" {{
  skip_credentials_validation = true
  skip_metadata_api_check     = true
  s3_use_path_style           = true
  endpoints {{
{endpoints}  }}
}}
""")
    return folder


@pytest.fixture
def aws(moto, monkeypatch):
    """The address of the AWS on loopback; this process and those that it starts use it."""
    url, environment = moto
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(bootstrapped, "POLL_SECONDS", 0.2)
    return url


def client(service):
    import boto3

    return boto3.client(service, region_name="us-east-1")


def machines_of_moto(*states):
    found = [
        one for reservation in client("ec2").describe_instances()["Reservations"] for one in reservation["Instances"]
    ]
    return [machine for machine in found if not states or machine["State"]["Name"] in states]


class Bootstraps(threading.Thread):
    """What the machines would say: moto starts none. `words`: by the machine's name, else `done`."""

    def __init__(self, **words):
        super().__init__(daemon=True)
        self.words, self.ended = words, threading.Event()

    def run(self):
        while not self.ended.wait(0.5):
            for machine in machines_of_moto("running"):
                name = {tag["Key"]: tag["Value"] for tag in machine.get("Tags", [])}.get("Name", "").rpartition("-")[2]
                for bucket in client("s3").list_buckets()["Buckets"]:
                    body = self.words.get(name, "done\n")
                    key = f"bootstrap/{machine['InstanceId']}"
                    client("s3").put_object(Bucket=bucket["Name"], Key=key, Body=body)

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *error):
        self.ended.set()
        self.join()


KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAINzLYuTsqYIgPQVOwl6ZMFugmA7oPNS6SIa0SqJJfzRZ"
WORDS = [
    "infra.variables.ttl_hours=4",
    "infra.variables.ami_id=ami-12c6146b",
    "infra.variables.placement_group=false",
    f"infra.variables.public_key='{KEY}'",
]


@pytest.mark.full
def test_aws_apply_an_empty_second_plan_a_longer_time_and_destroy(aws, tmp_path):
    url, ec2, s3 = aws, client("ec2"), client("s3")
    words = [*WORDS, "infra.variables.shared_gb=100", f"infra.folder={tmp_path}/state"]
    target = infra.Target("aws", words, source=for_moto(tmp_path / "aws", url))
    changes, price = target.plan()
    assert len(changes) == 49
    disks = (600 * 0.08 + 100 * 0.30) / 730
    assert price.total == pytest.approx(4 * (0.192 + 2 * 1.006 + 0.045 + 0.005 + 3 * 0.01 + disks), rel=1e-9)
    plan = json.loads(target.call("show", "-json", str(target.plan_file), failure="no plan"))
    assert plan["planned_values"]["outputs"]["cost_usd"]["value"] == pytest.approx(price.total), "terraform's own sum"
    with Bootstraps():
        target.up()
    machines = machines_of_moto("running")
    assert sorted(machine["InstanceType"] for machine in machines) == ["g5.xlarge", "g5.xlarge", "m5.xlarge"]
    for machine in machines:
        tags = {tag["Key"]: tag["Value"] for tag in machine["Tags"]}
        assert tags["distributed-ml"] == "distributed-ml"
        assert re.fullmatch(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\dZ", tags["expires"])
    for template in ec2.describe_launch_templates()["LaunchTemplates"]:
        (version,) = ec2.describe_launch_template_versions(LaunchTemplateId=template["LaunchTemplateId"])[
            "LaunchTemplateVersions"
        ]
        assert version["LaunchTemplateData"]["MetadataOptions"]["HttpTokens"] == "required"
        assert version["LaunchTemplateData"]["MetadataOptions"]["InstanceMetadataTags"] == "enabled"
        assert version["LaunchTemplateData"]["BlockDeviceMappings"][0]["Ebs"]["Encrypted"] is True
    (bucket,) = (found["Name"] for found in s3.list_buckets()["Buckets"])
    assert set(s3.get_public_access_block(Bucket=bucket)["PublicAccessBlockConfiguration"].values()) == {True}
    inbound = [
        spread
        for group in ec2.describe_security_groups()["SecurityGroups"]
        if group["GroupName"].startswith("distributed-ml")
        for rule in group["IpPermissions"]
        for spread in rule["IpRanges"]
    ]
    assert [spread["CidrIp"] for spread in inbound] == ["10.20.0.0/16"], "nobody comes in from outside"
    inventory = yaml.safe_load((tmp_path / "state/inventory.yaml").read_text())
    assert [(host["name"], host["slots"], host["gpus"]) for host in inventory["hosts"]] == [
        ("worker1", 1, 1),
        ("worker2", 1, 1),
    ]
    changes, _ = target.plan()
    assert [change["address"] for change in changes] == []
    # More time: tags and schedules, in place.
    (shared,) = client("efs").describe_file_systems()["FileSystems"]
    for template in ec2.describe_launch_templates()["LaunchTemplates"]:
        (version,) = ec2.describe_launch_template_versions(LaunchTemplateId=template["LaunchTemplateId"])[
            "LaunchTemplateVersions"
        ]
        script = base64.b64decode(version["LaunchTemplateData"]["UserData"]).decode()
        assert f"export SHARED='{shared['FileSystemId']}.efs.us-east-1.amazonaws.com:/'" in script
    longer = infra.Target("aws", [*words, "infra.variables.ttl_hours=6"], tmp_path / "aws")
    changes, _ = longer.plan()
    assert {(change["address"], *change["change"]["actions"]) for change in changes} == {
        ("aws_efs_file_system.shared[0]", "update"),
        ("aws_instance.head", "update"),
        ("aws_instance.worker[0]", "update"),
        ("aws_instance.worker[1]", "update"),
        ('aws_scheduler_schedule.expiry["again"]', "update"),
        ('aws_scheduler_schedule.expiry["first"]', "update"),
    }
    with Bootstraps():
        longer.up()
    assert {one["InstanceId"] for one in machines_of_moto("running")} == {one["InstanceId"] for one in machines}
    tags = [{tag["Key"]: tag["Value"] for tag in one["Tags"]} for one in machines_of_moto("running")]
    assert {its["expires"] for its in tags} == {longer.outputs()["expires"]}
    longer.down()
    assert longer.left_over() == []
    assert machines_of_moto("running", "pending", "stopped") == []
    assert client("scheduler").list_schedules()["Schedules"] == []
    assert client("efs").describe_file_systems()["FileSystems"] == []
    assert s3.list_buckets()["Buckets"] == []
    assert [vpc for vpc in ec2.describe_vpcs()["Vpcs"] if not vpc["IsDefault"]] == []
    # What the state does not know, the scan finds by its tag.
    stray = ec2.create_volume(
        AvailabilityZone="us-east-1a",
        Size=1,
        TagSpecifications=[{"ResourceType": "volume", "Tags": [{"Key": "distributed-ml", "Value": "distributed-ml"}]}],
    )
    with pytest.raises(
        UserError, match=f"still there, with the tag distributed-ml=distributed-ml: .*{stray['VolumeId']}"
    ):
        target.down()
    ec2.delete_volume(VolumeId=stray["VolumeId"])


@pytest.mark.full
@pytest.mark.parametrize(
    ("more", "messages"),
    [
        (["public_key=null", "efa=true"], ["public_key is not set", "efa: g5.xlarge has none"]),
        (["zone=us-east-1z"], ["us-east-1z has both m5.xlarge and g5.xlarge; those that have: us-east-1a"]),
    ],
)
def test_machines_that_could_run_no_recipe_are_not_planned(aws, tmp_path, more, messages):
    words = [*WORDS, *(f"infra.variables.{word}" for word in more), f"infra.folder={tmp_path}/state"]
    target = infra.Target("aws", words, source=for_moto(tmp_path / "aws", aws))
    with pytest.raises(UserError) as error:
        target.plan()
    assert all(message in " ".join(str(error.value).split()) for message in messages), error.value


@pytest.mark.full
def test_an_apply_that_fails_in_the_middle_leaves_an_expiry(aws, tmp_path):
    """And what the expiry runs removes the machines that are there, and nothing that has another tag."""
    ec2 = client("ec2")
    stranger = ec2.run_instances(ImageId="ami-12c6146b", MinCount=1, MaxCount=1)["Instances"][0]["InstanceId"]
    # A machine of an image that there is not: it comes last, and fails.
    broken = """
resource "aws_instance" "broken" {
  ami           = "ami-00000000"
  instance_type = "t3.micro"
  subnet_id     = "subnet-00000000"
  depends_on    = [aws_instance.worker]
}
"""
    source = for_moto(tmp_path / "aws", aws, more=broken)
    stays = client("efs").create_file_system(Tags=[{"Key": "distributed-ml", "Value": "middle"}])["FileSystemId"]
    words = [*WORDS, "infra.variables.name=middle", "infra.variables.shared_gb=1", f"infra.folder={tmp_path}/state"]
    target = infra.Target("aws", words, source=source)
    with pytest.raises(UserError, match="terraform could not make everything"):
        target.up()
    assert len(machines_of_moto("running")) == 4, "head, two workers, and the stranger"
    schedules = client("scheduler").list_schedules()["Schedules"]
    assert sorted(schedule["Name"] for schedule in schedules) == [
        "middle-expiry-again",
        "middle-expiry-first",
    ]
    first, again = (client("scheduler").get_schedule(Name=f"middle-expiry-{which}") for which in ("first", "again"))
    created = datetime.datetime.fromisoformat((tmp_path / "state/created.txt").read_text())
    assert first["ScheduleExpression"] == f"at({created + datetime.timedelta(hours=4):%Y-%m-%dT%H:%M:%S})"
    assert again["ScheduleExpression"] == "rate(15 minutes)"
    assert (again["EndDate"] - again["StartDate"]) == datetime.timedelta(hours=23, minutes=45)
    assert json.loads(first["Target"]["Input"]) == {"DocumentName": "middle-expiry"}
    document = json.loads(client("ssm").get_document(Name="middle-expiry")["Content"])
    (step,) = document["mainSteps"]
    policy = client("iam").get_role_policy(RoleName="middle-expiry", PolicyName="remove-what-has-the-tag")
    removing = next(entry for entry in policy["PolicyDocument"]["Statement"] if entry["Sid"] == "RemoveWhatHasTheTag")
    assert removing["Condition"] == {"StringEquals": {"aws:ResourceTag/distributed-ml": "middle"}}
    # What the schedule would start: the script of the document, with what the document gives it.
    space = {}
    exec(step["inputs"]["Script"], space)
    said = space[step["inputs"]["Handler"]](step["inputs"]["InputPayload"])
    assert len([what for what in said["removed"] if what.startswith("i-")]) == 3
    assert [what for what in said["removed"] if what.startswith("nat-")] != []
    assert [machine["InstanceId"] for machine in machines_of_moto("running")] == [stranger]
    assert [what.split("-")[0] for what in said["removed"] if what.startswith("fs")] == ["fsmt", "fs"]
    assert [disk["FileSystemId"] for disk in client("efs").describe_file_systems()["FileSystems"]] == [stays]
    client("efs").delete_file_system(FileSystemId=stays)
    addresses = [address for address in ec2.describe_addresses()["Addresses"]]
    assert addresses == [] or said["later"], "an address that is in use goes with the next call"
    ec2.terminate_instances(InstanceIds=[stranger])
    target.down()


def test_everything_that_costs_waits_for_the_expiry(aws, tmp_path):
    """In terraform's own graph: nothing that has a price can be made before its end is."""
    for name in ("aws", "eks"):
        source = for_moto(tmp_path / name, aws, name)
        target = infra.Target(
            name, ["infra.variables.ttl_hours=4", f"infra.folder={tmp_path}/{name}-state"], source=source
        )
        target.init()
        graph = target.call("graph", failure="no graph")
        arrows = {}
        for start, end in re.findall(r'"([^"]+)" -> "([^"]+)"', graph):
            arrows.setdefault(start, set()).add(end)

        def needs(node, seen, arrows=arrows):
            for other in arrows.get(node, ()):
                if other not in seen:
                    seen.add(other)
                    needs(other, seen)
            return seen

        table = yaml.safe_load((ROOT / f"infra/{name}/prices.yaml").read_text())
        priced = [node for node in re.findall(r'"([^"]+)" \[label', graph) if node.split(".")[0] not in table["free"]]
        priced = [node for node in priced if node.startswith("aws_")]
        assert len(priced) >= 6, priced
        for node in priced:
            first = (
                "terraform_data.guard" if node.startswith(("aws_kms", "aws_efs")) else "aws_scheduler_schedule.expiry"
            )
            assert first in needs(node, set()), node


@pytest.mark.full
def test_a_bootstrap_that_failed_is_shown_and_no_inventory_is_written(aws, tmp_path):
    target = infra.Target(
        "aws",
        [*WORDS, "infra.variables.name=third", f"infra.folder={tmp_path}/state"],
        source=for_moto(tmp_path / "aws", aws),
    )
    log = "failed\nE: Failed to fetch the package list\ntry 6 of: apt-get update failed\n"
    with Bootstraps(worker2=log), pytest.raises(UserError) as error:
        target.up()
    assert re.search(
        r"worker2 \(i-\w+\): its bootstrap failed.*try 6 of: apt-get update failed", str(error.value), re.S
    )
    assert not (tmp_path / "state/inventory.yaml").exists()
    target.settings["bootstrap_minutes"] = 0.01
    where = {"bucket": target.outputs()["bucket"], "hosts": {"worker9": "i-silent"}}
    with pytest.raises(UserError, match=r"no word of worker9 \(i-silent\) after 0.01 minutes"):
        bootstrapped.wait_for_bootstrap(target.name, target.variables, where, target.settings["bootstrap_minutes"])
    target.down()


@needs_hosts
@pytest.mark.full
def test_the_state_in_a_bucket_is_locked_there(moto, tmp_path, monkeypatch):
    url, environment = moto
    for name, value in {**environment, "AWS_ENDPOINT_URL_S3": url}.items():
        monkeypatch.setenv(name, value)
    import boto3

    s3 = boto3.client("s3", region_name="us-east-1")
    s3.create_bucket(Bucket="states")
    shutil.copytree(ROOT / "infra/local", tmp_path / "source", ignore=shutil.ignore_patterns("hosts", "*.tfstate*"))
    words = [f"infra.folder={tmp_path}/folder", "infra.state=s3://states/mine"]
    target = infra.Target("local", words, source=tmp_path / "source")
    target.up()
    try:
        assert [entry["Key"] for entry in s3.list_objects_v2(Bucket="states")["Contents"]] == ["mine/local.tfstate"]
        assert list((tmp_path / "folder").glob("*.tfstate")) == []
        assert infra.Target("local", words, source=tmp_path / "source").status() == 1
        # Somebody elsewhere is at work.
        held = {
            "ID": "0",
            "Operation": "OperationTypeApply",
            "Who": "somebody",
            "Version": "1.11.4",
            "Created": "2026-01-31T12:00:00Z",
        }
        s3.put_object(Bucket="states", Key="mine/local.tfstate.tflock", Body=json.dumps(held))
        with pytest.raises(UserError, match="another apply is under way: wait for its end. .*somebody"):
            target.plan()
        s3.delete_object(Bucket="states", Key="mine/local.tfstate.tflock")
    finally:
        target.down()
    state = json.loads(s3.get_object(Bucket="states", Key="mine/local.tfstate")["Body"].read())
    assert state["resources"] == []
    s3.delete_object(Bucket="states", Key="mine/local.tfstate")
    s3.delete_bucket(Bucket="states")


def test_where_a_state_may_be(monkeypatch):
    monkeypatch.delenv("AWS_ENDPOINT_URL_S3", raising=False)
    kind, settings = terraform.backend_of("s3://ours/ml/", "aws", "eu-west-1")
    assert (kind, settings["bucket"], settings["key"]) == ("s3", "ours", "ml/aws.tfstate")
    assert (settings["use_lockfile"], settings["encrypt"], settings["region"]) == ("true", "true", "eu-west-1")
    assert terraform.backend_of("gs://ours", "gcp", "") == ("gcs", {"bucket": "ours", "prefix": "gcp"})
    with pytest.raises(UserError, match="infra.state=/tmp/here: expected s3://bucket/path, gs://bucket/path"):
        terraform.backend_of("/tmp/here", "aws", "")


NOW = datetime.datetime(2026, 11, 27, 12, tzinfo=datetime.UTC)
MACHINE = {"instance_type": "g5.xlarge", "root_block_device": [{"volume_type": "gp3", "volume_size": 200}]}


def plan_of(*resources, **variables):
    """A plan as terraform shows it, of (kind, values) and what its variables were in the end."""
    given = {"region": "us-east-1", "ttl_hours": 4, "created": "2026-11-27T12:00:00Z"} | variables
    changes = [{"mode": "managed", "type": kind, "change": {"after": after}} for kind, after in resources]
    return {"resource_changes": changes, "variables": {name: {"value": value} for name, value in given.items()}}


def priced(target, *resources, limit=1000.0, **variables):
    plan = plan_of(*resources, **variables)
    return prices.guard(plan, {}, ROOT / f"infra/{target}/prices.yaml", limit, NOW)


GROUP = {"instance_types": ["m5.xlarge"], "scaling_config": [{"desired_size": 0, "max_size": 3}]}
GB = 0.08 / 730


@pytest.mark.parametrize(
    ("target", "kind", "after", "variables", "usd"),
    [
        ("aws", "aws_instance", MACHINE, {}, 4 * (1.006 + 200 * GB)),
        # Whatever the driver's settings say: what the plan has is paid for.
        (
            "aws",
            "aws_instance",
            {**MACHINE, "root_block_device": [{"volume_type": "gp3", "volume_size": 16384}]},
            {},
            4 * (1.006 + 16384 * GB),
        ),
        (
            "aws",
            "aws_instance",
            {
                **MACHINE,
                "root_block_device": [{"volume_type": "gp3", "volume_size": 200, "iops": 4000, "throughput": 225}],
            },
            {},
            4 * (1.006 + 200 * GB + 1000 * 0.005 / 730 + 100 * 0.04 / 730),
        ),
        ("aws", "aws_instance", {**MACHINE, "associate_public_ip_address": True}, {}, 4 * (1.006 + 200 * GB + 0.005)),
        ("aws", "aws_nat_gateway", {}, {}, 4 * 0.045),
        ("aws", "aws_instance", {**MACHINE, "instance_type": "p5.48xlarge"}, {}, 4 * (55.04 + 200 * GB)),
        ("aws", "aws_instance", {**MACHINE, "instance_type": "p4d.24xlarge"}, {}, 4 * (21.957642 + 200 * GB)),
        ("eks", "aws_eks_node_group", GROUP, {}, 4 * 3 * (0.192 + 100 * GB)),
        # A cluster ends an hour after its nodes, and its version's age has a price.
        ("eks", "aws_eks_cluster", {"version": "1.35"}, {}, 5 * 0.10),
        ("eks", "aws_eks_cluster", {"version": "1.34"}, {}, 5 * 0.10),
        ("eks", "aws_eks_cluster", {"version": "1.34"}, {"ttl_hours": 110}, 111 * 0.60),
        ("eks", "aws_eks_cluster", {"version": "1.33"}, {}, 5 * 0.60),
        ("eks", "aws_eks_cluster", {"version": "1.99"}, {}, 5 * 0.60),
        # One hour at least.
        ("eks", "aws_eks_node_group", GROUP, {"ttl_hours": 0.6}, 1 * 3 * (0.192 + 100 * GB)),
        ("eks", "aws_efs_file_system", {"throughput_mode": "bursting"}, {"shared_gb": 100}, 4 * 100 * 0.30 / 730),
        (
            "gcp",
            "google_filestore_instance",
            {"file_shares": [{"capacity_gb": 1024}]},
            {"region": "us-central1"},
            4 * 1024 * 0.20 / 730,
        ),
        (
            "eks",
            "aws_efs_file_system",
            {"throughput_mode": "provisioned", "provisioned_throughput_in_mibps": 128},
            {"shared_gb": 0},
            4 * 128 * 6 / 730,
        ),
        (
            "gke",
            "google_container_cluster",
            {},
            {"region": "us-central1", "shared_gb": 1024},
            4 * (0.10 + 1024 * 0.20 / 730),
        ),
    ],
)
def test_what_will_be_paid_is_counted_from_the_plan(target, kind, after, variables, usd):
    assert priced(target, (kind, after), **variables).total == pytest.approx(usd)


@pytest.mark.parametrize(
    ("resource", "variables", "limit", "message"),
    [
        (MACHINE, {}, float("nan"), "infra.max_cost_usd=nan: expected US dollars"),
        (MACHINE, {}, float("inf"), "infra.max_cost_usd=inf: expected US dollars"),
        (MACHINE, {}, -1.0, "infra.max_cost_usd=-1.0: expected US dollars"),
        (MACHINE, {}, 4.0, "4.11 USD until everything expires .4 h, prices of 2026-09-24. is more than"),
        (MACHINE, {"ttl_hours": float("nan")}, 20.0, "ttl_hours=nan: expected after how many hours"),
        (MACHINE, {"ttl_hours": None}, 20.0, "ttl_hours=None: expected after how many hours"),
        (MACHINE, {"created": "2026-11-27T08:29:00Z"}, 20.0, "ends at 2026-11-27 12:29 UTC, in less than 30 minutes"),
        (MACHINE, {"region": "mars-east-1"}, 20.0, "no prices for region mars-east-1"),
        ({**MACHINE, "instance_type": "x9.huge"}, {}, 20.0, "the price of x9.huge is unknown"),
        (
            {**MACHINE, "root_block_device": [{"volume_type": "io2", "volume_size": 9}]},
            {},
            20.0,
            "disks io2 .GB. is unknown",
        ),
    ],
)
def test_what_the_guard_refuses(resource, variables, limit, message):
    with pytest.raises(UserError, match=message):
        priced("aws", ("aws_instance", resource), limit=limit, **variables)


def test_old_prices_are_warned_of():
    table = {"date": datetime.date(2026, 9, 24)}
    assert prices.stale(table, datetime.date(2026, 12, 23)) == ""
    assert "of 2026-09-24, 91 days ago" in prices.stale(table, datetime.date(2026, 12, 24))


@pytest.mark.parametrize(
    "word",
    ["max_cost_usd=nan", "max_cost_usd=inf", "max_cost_usd=-inf", "variables.volume_gb=nan", "variables.ttl_hours=inf"],
)
def test_a_number_that_is_none_is_refused(tmp_path, word):
    name = word.split("=")[0]
    with pytest.raises(UserError, match=f"infra.{name}=-?(nan|inf): expected a number"):
        infra.Target("aws", [f"infra.{word}", f"infra.folder={tmp_path}"])


def guard_alone(folder, target, values, **environment):
    """What a bare `terraform plan` says to the guard of a target: without its resources it needs no provider."""
    for name in ("guard.tf", "variables.tf", "prices.yaml"):
        shutil.copy(ROOT / f"infra/{target}/{name}", folder)
    text = (ROOT / f"infra/{target}/main.tf").read_text()
    made = re.search(r"^locals \{\n.*?^\}", text, re.MULTILINE | re.DOTALL).group()
    made = re.sub(r"slice\(data\..*\)", "[]", made)
    made = re.sub(r"file\(.*?bootstrap.sh\"\)", '""', made)
    (folder / "main.tf").write_text(made + '\noutput "usd" {\n  value = local.cost_usd\n}\n')
    (folder / "values.tfvars.json").write_text(json.dumps(values))
    environment = {**CLEAN, "TF_DATA_DIR": f"{folder}/.terraform", **environment}
    for words in (["init", "-input=false"], ["plan", "-input=false", "-no-color", "-var-file=values.tfvars.json"]):
        done = subprocess.run(
            ["terraform", *words], cwd=folder, capture_output=True, text=True, timeout=300, env=environment
        )
    return done.returncode, " ".join(re.sub(r"[╷│╵]", " ", done.stdout + done.stderr).split())


@pytest.mark.parametrize(
    ("target", "values", "environment", "message"),
    [
        ("aws", {}, {}, "+ usd = 9.39901"),
        ("aws", {"max_cost_usd": 5}, {}, "9.40 USD until everything expires is more than max_cost_usd = 5"),
        ("aws", {}, {"TF_VAR_volume_gb": "16384"}, "30.68 USD until everything expires is more than max_cost_usd = 20"),
        ("aws", {"worker_type": "x9.huge"}, {}, "the price of x9.huge is unknown"),
        ("aws", {"region": "mars-east-1"}, {}, "no prices for region mars-east-1"),
        ("aws", {"ttl_hours": 0.4}, {}, "in less than 30 minutes"),
        ("aws", {"max_cost_usd": None}, {"TF_VAR_max_cost_usd": "nan"}, "a number is required"),
        ("aws", {"max_cost_usd": None}, {"TF_VAR_max_cost_usd": "inf"}, "a number"),
        ("eks", {}, {}, "+ usd = 10.6293"),
        ("eks", {"ttl_hours": 0.9}, {}, "ttl_hours must be at least 1"),
        ("eks", {"shared_mibps": 1024}, {}, "USD until everything expires is more than max_cost_usd = 20"),
        ("gcp", {"project": "mine"}, {}, "compare it with the provider's page"),
        ("gcp", {"project": "mine", "shared_gb": 65433}, {}, "USD until everything expires is more than max_cost_usd"),
        ("gcp", {"project": "mine", "shared_gb": 100}, {}, "Filestore makes no smaller disk"),
        ("gke", {"project": "mine"}, {}, "+ usd = "),
        (
            "gke",
            {"project": "mine", "shared_gb": 65433},
            {},
            "USD until everything expires is more than max_cost_usd = 20",
        ),
        ("gke", {"project": "mine", "ttl_hours": 0.9}, {}, "ttl_hours must be at least 1"),
    ],
)
def test_a_bare_terraform_is_guarded(tmp_path, target, values, environment, message):
    created = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    good = {"name": "abc", "created": created, "ttl_hours": 4, "max_cost_usd": 20}
    given = {name: value for name, value in {**good, **values}.items() if value is not None}
    status, text = guard_alone(tmp_path, target, given, **environment)
    refused = "+ usd" not in message and "compare" not in message
    assert message in text and (status != 0) == refused, text


@pytest.mark.parametrize(
    "wrong",
    [
        {  # each by itself
            "vpc_cidr=8.8.0.0/16": "vpc_cidr must be a private range",
            "bastion_cidrs=[0.0.0.0/0]": "0.0.0.0/0 would let everybody in",
            "num_workers=0": "num_workers must be a whole number from 1 to 64",
            "market=cheap": "market must be on-demand, spot or capacity-block",
        },
        {  # looked at by the guard of what it costs
            "ttl_hours=0": "ttl_hours must be more than 0",
            "name=X": "name must be 3 to 32 small letters",
        },
        {"vpc_cidr=10.20.0.0/40": "vpc_cidr must be a private range"},
        {  # without another one
            "market=capacity-block": "needs capacity_reservation_id",
            "access=bastion": "needs bastion_cidrs",
        },
    ],
)
def test_variables_that_make_no_sense(moto, tmp_path, monkeypatch, wrong):
    """A plan names all of them at once."""
    url, environment = moto
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    words = [*WORDS, *(f"infra.variables.{word}" for word in wrong), f"infra.folder={tmp_path}/state"]
    target = infra.Target("aws", words, source=for_moto(tmp_path / "aws", url))
    with pytest.raises(UserError) as error:
        target.plan()
    assert [message for message in wrong.values() if message not in str(error.value)] == []


def test_without_a_time_to_live_nothing_is_made(moto, tmp_path, monkeypatch):
    url, environment = moto
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    target = infra.Target("aws", [*WORDS[1:], f"infra.folder={tmp_path}/state"], source=for_moto(tmp_path / "aws", url))
    with pytest.raises(UserError, match="ttl_hours"):
        target.plan()
    plan = {
        "resource_changes": [
            {"mode": "managed", "type": "aws_instance", "change": {"after": {"instance_type": "g5.xlarge"}}}
        ]
    }
    with pytest.raises(UserError, match="expected after how many hours everything is to be terminated"):
        target.guard(plan)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "Error: ExpiredToken: The security token included in the request is expired",
            "the credentials have expired: log in again",
        ),
        (
            "Error: VcpuLimitExceeded: You have requested more vCPU capacity",
            "the account's quota of machines of this kind is used up",
        ),
        (
            "Error: state snapshot was created by Terraform v1.99.0, which is newer than current",
            "the state is a newer terraform's",
        ),
        ("Error: Error acquiring the state lock", "another apply is under way"),
    ],
)
def test_a_providers_error_with_what_to_do(text, message):
    assert terraform.advice(text).startswith(message)


def test_no_secret_is_printed():
    shown = terraform.readable("signature of AKIAABCDEFGHIJKLMNOP failed, secret_key = abc/def+123, region us-east-1")
    assert shown == "signature of *** failed, ***, region us-east-1"


@pytest.mark.parametrize(
    ("provider", "least"),
    [
        ("aws", {"aws": 150, "eks": 110}),
        ("google", {"gcp": 80, "gke": 70}),
        ("kubernetes", {"kubernetes": 25}),
        ("helm", {"kubernetes": 15}),
    ],
)
@pytest.mark.full
def test_what_is_written_exists_in_todays_provider(tools, provider, least):
    """Every resource, argument and block against the schema of the provider (AWS 6, Google 7,
    Kubernetes 2.38, Helm 3)."""
    code = """
import glob, importlib, inspect, json, keyword, os, re, sys
import hcl2
META = {"count", "for_each", "depends_on", "lifecycle", "provider", "provisioner", "connection"}
def clean(name): return name.strip('"')
def camel(name): return "".join(part.capitalize() for part in name.split("_"))
def arguments(cls): return set(inspect.signature(cls.__init__).parameters) - {"self", "scope", "id_"}
seen, problems, provider = {}, [], sys.argv[1]
def count(): seen[target] = seen.get(target, 0) + 1
def check(module, prefix, cls, body, where):
    known = arguments(cls)
    for key, value in body.items():
        key = clean(key).replace("self", "self_attribute") if clean(key) == "self" else clean(key)
        if key.startswith("__") or key in META: continue
        if key == "dynamic":
            for block in value:
                for name, content in block.items():
                    inner = content["content"]
                    inner = inner[0] if isinstance(inner, list) else inner
                    check_block(module, prefix, known, clean(name), [inner], where)
            continue
        blocks = value if isinstance(value, list) and value and isinstance(value[0], dict) else None
        if blocks: check_block(module, prefix, known, key, blocks, where)
        else:
            count()
            if key not in known: problems.append(f"{where}: {key}")
def check_block(module, prefix, known, key, blocks, where):
    count()
    if key + "_" * keyword.iskeyword(key) not in known:
        problems.append(f"{where}: block {key}"); return
    cls = getattr(module, prefix + camel(key), None)
    if cls is not None:
        for block in blocks: check(module, prefix + camel(key), cls, block, f"{where}.{key}")
for path in sorted(path for folder in sys.argv[2:] for path in glob.glob(folder + "/*.tf")):
    target = os.path.basename(os.path.dirname(path))
    parsed = hcl2.load(open(path))
    for kind in ("resource", "data"):
        for entry in parsed.get(kind, []):
            for resource, named in entry.items():
                resource = clean(resource)
                if not resource.startswith(provider + "_"): continue
                # another provider's
                if any("google-beta" in str(body.get("provider")) for body in named.values()): continue
                name = resource.removeprefix(provider + "_")
                module_name = (f"data_{provider}_" if kind == "data" else "") + name
                try: module = importlib.import_module(f"cdktf_cdktf_provider_{provider}.{module_name}")
                except ModuleNotFoundError: problems.append(f"{kind} {resource} does not exist"); continue
                wanted = camel(module_name).lower()
                prefix = next(n for n in dir(module) if n.lower() in (wanted, wanted + "a"))
                for label, body in named.items():
                    check(module, prefix, getattr(module, prefix), body, f"{resource}.{clean(label)}")
print(json.dumps(seen)); print(problems)
"""
    environment = {
        **CLEAN,
        "JSII_SILENCE_WARNING_END_OF_LIFE_NODE_VERSION": "1",
        "JSII_SILENCE_WARNING_UNTESTED_NODE_VERSION": "1",
    }
    if not shutil.which("node"):
        skip("node", "node is missing: the schema's package needs it (apt-get install nodejs)")
    done = subprocess.run(
        [tools, "-c", code, provider, *(ROOT / f"infra/{target}" for target in least)],
        capture_output=True,
        text=True,
        env=environment,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    seen, problems = done.stdout.strip().splitlines()[-2:]
    seen = json.loads(seen)
    assert all(seen.get(target, 0) > number for target, number in least.items()), seen
    assert problems == "[]"


TARGETS = sorted(path.parent.name for path in ROOT.glob("infra/*/main.tf"))


@pytest.mark.parametrize("target", TARGETS)
def test_what_is_referred_to_is_there(target):
    """Variables, locals, resources and data that an expression names; for targets whose provider cannot be had here."""
    text = "".join(path.read_text() for path in sorted((ROOT / f"infra/{target}").glob("*.tf")))
    text = re.sub(r"^\s*#.*$", "", text, flags=re.MULTILINE)
    defined = set(re.findall(r'^variable "(\w+)"', text, re.MULTILINE))
    assert set(re.findall(r"\bvar\.(\w+)", text)) == defined, "each variable is there, and used"
    inside = "".join(re.findall(r"^locals \{\n(.*?)^\}", text, re.MULTILINE | re.DOTALL))
    assert set(re.findall(r"\blocal\.(\w+)", text)) <= set(re.findall(r"^  (\w+)\s*=", inside, re.MULTILINE))
    resources = {".".join(pair) for pair in re.findall(r'^resource "(\w+)" "(\w+)"', text, re.MULTILINE)}
    data = {".".join(pair) for pair in re.findall(r'^data "(\w+)" "(\w+)"', text, re.MULTILINE)}
    named = set(re.findall(r"(?<![\w.\"/-])((?:aws|google|terraform|kubernetes|helm)_\w+\.\w+)\b", text))
    assert named <= resources, named - resources
    assert set(re.findall(r"\bdata\.(\w+\.\w+)", text)) <= data
    settings = set(yaml.safe_load((ROOT / f"conf/infra/{target}.yaml").read_text())["variables"])
    assert settings | {"created", "folder", "python", "max_cost_usd"} >= defined >= settings, (
        "conf/infra and the variables are the same"
    )


def test_every_target_has_its_files():
    assert (
        TARGETS
        == sorted(path.stem for path in ROOT.glob("conf/infra/*.yaml"))
        == ["aws", "eks", "gcp", "gke", "kubernetes", "local"]
    )
    for target in TARGETS:
        assert (ROOT / f"infra/{target}/README.md").is_file()


def test_the_price_of_a_tpu():
    disk = {"initialize_params": [{"type": "pd-balanced", "size": 100}]}
    planned = [
        ("google_tpu_v2_vm", {"accelerator_type": "v5litepod-1"}),
        ("google_compute_instance", {"machine_type": "n2-standard-4", "boot_disk": [disk]}),
        ("google_storage_bucket", {}),
    ]
    price = priced("gcp", *planned, region="us-central1", ttl_hours=10)
    assert price.total == pytest.approx(10 * (1.20 + 0.1943 + 100 * 0.10 / 730))
    assert "these prices are of 2025-07-01, 514 days ago" in price.warning


def test_checkov(tools):
    done = subprocess.run(
        [tools.with_name("checkov"), "-d", ROOT / "infra", "--framework", "terraform", "-o", "json"],
        capture_output=True,
        text=True,
        timeout=300,
    )
    found = json.loads(done.stdout)
    assert found["summary"]["failed"] == 0, [
        check["check_id"] + " " + check["resource"] for check in found["results"]["failed_checks"]
    ]
    assert found["summary"]["passed"] > 100
    skipped = {
        check["check_id"]: check["check_result"]["suppress_comment"] for check in found["results"]["skipped_checks"]
    }
    assert len(skipped) == 26
    assert all(len(reason) > 20 for reason in skipped.values())


GOOD = {
    "eks": {"name": "abc", "created": "2026-01-31T12:00:00Z", "ttl_hours": 4, "max_cost_usd": 20},
    "gke": {"name": "abc", "created": "2026-01-31T12:00:00Z", "ttl_hours": 4, "max_cost_usd": 20, "project": "mine"},
    "kubernetes": {"name": "abc", "context": "mine", "storage_class": "nfs"},
}


@pytest.mark.parametrize(
    ("target", "values", "message"),
    [
        *((target, {}, None) for target in GOOD),
        *((target, {"ttl_hours": 0}, "ttl_hours must be at least 1") for target in ("eks", "gke")),
        *((target, {"api_cidrs": ["0.0.0.0/0"]}, "0.0.0.0/0 would let everybody knock") for target in ("eks", "gke")),
        *((target, {"num_workers": 65}, "a whole number from 0 to 64") for target in ("eks", "gke")),
        ("eks", {"vpc_cidr": "8.8.0.0/16"}, "vpc_cidr must be a private range"),
        ("eks", {"vpc_cidr": "10.40.0.0/24"}, "vpc_cidr must be a private range of /16 to /18"),
        ("gke", {"subnet_cidr": "10.51.0.0/20"}, "outside 10.51 to 10.53"),
        ("gke", {"name": "a-name-that-is-much-too-long-for-an-account"}, "3 to 22 small letters"),
        ("kubernetes", {"context": ""}, "context must name a cluster"),
        (
            "kubernetes",
            {"storage_class": None},
            "one of storage_class, efs_file_system and filestore_network must be given",
        ),
        (
            "kubernetes",
            {"efs_file_system": "fs-1"},
            "one of storage_class, efs_file_system and filestore_network must be given",
        ),
        ("kubernetes", {"operators": ["trainer", "flink"]}, "operators may be trainer, ray, spark, dask and kserve"),
    ],
)
def test_variables_of_clusters(tmp_path, target, values, message):
    """The variables alone, as their providers cannot be had here."""
    shutil.copy(ROOT / f"infra/{target}/variables.tf", tmp_path)
    (tmp_path / "values.tfvars.json").write_text(json.dumps(GOOD[target] | values))
    for words in (["init", "-input=false"], ["plan", "-input=false", "-no-color", "-var-file=values.tfvars.json"]):
        done = subprocess.run(
            ["terraform", *words],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=300,
            env={**CLEAN, "TF_DATA_DIR": f"{tmp_path}/.terraform"},
        )
    text = " ".join(re.sub(r"[╷│╵]", " ", done.stderr).split())
    assert (done.returncode == 0) if message is None else message in text, text


def test_what_is_paid_for_already_needs_no_time(tmp_path):
    target = infra.Target("kubernetes", [f"infra.folder={tmp_path}", "infra.variables.context=mine"])
    assert "created" not in target.variables
    planned = [{"mode": "managed", "type": "helm_release", "change": {"after": {}}}]
    assert target.guard({"resource_changes": planned}).total == 0
    planned.append({"mode": "managed", "type": "aws_instance", "change": {"after": {"instance_type": "g5.xlarge"}}})
    with pytest.raises(UserError, match="expected after how many hours"):
        target.guard({"resource_changes": planned})


@pytest.mark.parametrize("name", ["TF_WORKSPACE", "TF_CLI_ARGS", "TF_CLI_ARGS_plan"])
def test_a_variable_that_leads_to_another_state_is_refused(name):
    with pytest.raises(UserError, match=f"{name}=dev is set.*Unset {name}; .*infra.folder=FOLDER"):
        terraform.check_variables({"PATH": "/bin", name: "dev"})
    terraform.check_variables({"TF_LOG": "debug"})


# ---- what a machine does at its start


def machine(folder, **programs):
    """A root for infra/bootstrap.sh, with programs that only write down how they were called."""
    (folder / "bin").mkdir()
    every = ("apt-get", "systemctl", "shutdown", "curl", "python3", "aws", "sleep", "nvidia-smi", "mount", "chown")
    for name in every:
        text = programs.get(name.replace("-", "_"), "exit 0")
        (folder / "bin" / name).write_text(f'#!/bin/bash\necho "{name} $*" >> {folder}/calls\n{text}\n')
        (folder / "bin" / name).chmod(0o755)
    return folder


# What `python3 -m venv` leaves: a pip, and a uv that knows where its Python is.
VENV = f"""mkdir -p "${{@: -1}}/bin" && cd "${{@: -1}}/bin"
printf '#!/bin/bash\\nexit 0\\n' > pip
printf '#!/bin/bash\\n[ "$2" = find ] && echo {sys.executable}\\nexit 0\\n' > uv
chmod 755 pip uv"""
AT_AWS = 'case "$*" in *api/token) echo token;; *instance-id) echo i-1;; *expires) cat "$ROOT/expires";; esac'


def boot(folder, **environment):
    own = {"PATH": f"{folder}/bin:{os.environ['PATH']}", "ROOT": str(folder), "CLOUD": "aws", "BUCKET": "ours"}
    own |= {"REGION": "us-east-1", "RETRY_SECONDS": "0", **environment}
    text = "#!/bin/bash\n" + (ROOT / "infra/bootstrap.sh").read_text()
    done = subprocess.run(["bash", "-c", text], env=own, capture_output=True, text=True, timeout=60)
    return done.returncode, (folder / "calls").read_text().splitlines()


def test_a_machine_tries_again_and_says_that_it_is_done(tmp_path):
    twice = 'test "$(grep -c ^apt-get $ROOT/calls)" -gt 2'
    said = 'cp "$5" "$ROOT/said"'
    folder = machine(tmp_path, apt_get=twice, python3=VENV, curl=AT_AWS, aws=said)
    status, calls = boot(folder, SHARED="fs-1.efs.example:/", SHARED_BY="nfs4 hard")
    assert status == 0
    assert "mount /shared" in calls
    assert (tmp_path / "etc/fstab").read_text() == "fs-1.efs.example:/ /shared nfs4 hard 0 0\n"
    assert [call.rsplit(" ", 1)[-1] for call in calls if call.startswith("apt-get") and "update" in call] == ["-q"] * 3
    assert (tmp_path / "said").read_text().splitlines()[0] == "done"
    assert f"aws --region us-east-1 s3 cp {tmp_path}/var/lib/cookbook/said s3://ours/bootstrap/i-1" in calls
    assert (tmp_path / "usr/local/bin/python3.11").resolve() == Path(sys.executable).resolve()
    # Its end comes before anything else, and a reboot starts its timer again.
    assert calls.index("systemctl enable --now cookbook-expiry.timer") < next(
        number for number, call in enumerate(calls) if call.startswith("apt-get")
    )
    assert "WantedBy=timers.target" in (tmp_path / "etc/systemd/system/cookbook-expiry.timer").read_text()


def test_a_machine_whose_bootstrap_fails_says_so(tmp_path):
    broken = 'echo "E: no packages here"; exit 100'
    status, calls = boot(machine(tmp_path, apt_get=broken, curl=AT_AWS, aws='cp "$5" "$ROOT/said"'))
    assert status == 1
    assert len([call for call in calls if call.startswith("apt-get")]) == 6
    said = (tmp_path / "said").read_text()
    assert said.startswith("failed\n") and "E: no packages here" in said


def test_a_machine_ends_when_its_tag_says_so(tmp_path):
    """The tag can be moved while it runs; a tag that cannot be read leaves the last one, or a week."""
    folder = machine(tmp_path, curl=AT_AWS)
    now = datetime.datetime.now(datetime.UTC)
    boot(folder, ONLY_EXPIRY="1")
    own = {"PATH": f"{folder}/bin:{os.environ['PATH']}", "ROOT": str(folder)}

    def ended(expires):
        (folder / "expires").write_text(expires)
        (folder / "calls").write_text("")
        subprocess.run([folder / "usr/local/sbin/cookbook-expiry"], env=own, check=False)
        return "shutdown -P now" in (folder / "calls").read_text()

    at = "%Y-%m-%dT%H:%M:%SZ"
    week = int((folder / "var/lib/cookbook/latest").read_text()) - now.timestamp()
    assert week == pytest.approx(168 * 3600, abs=60)
    assert not ended("")
    assert not ended((now + datetime.timedelta(hours=1)).strftime(at))
    assert ended((now - datetime.timedelta(minutes=1)).strftime(at))
    assert ended(""), "what was read last goes on holding"
    assert not ended((now + datetime.timedelta(hours=2)).strftime(at))


def test_the_leak_scan_asks_the_service(aws, tmp_path):
    """A key that waits for its deletion, and what is gone, do not count; what is there does."""
    tags = [{"TagKey": "distributed-ml", "TagValue": "leaks"}]
    key = client("kms").create_key(Tags=tags)["KeyMetadata"]
    target = infra.Target("eks", ["infra.variables.name=leaks", f"infra.folder={tmp_path}"])
    assert target.left_over() == [key["Arn"]]
    client("kms").schedule_key_deletion(KeyId=key["KeyId"], PendingWindowInDays=7)
    assert target.left_over() == []
    account = "arn:aws:ec2:us-east-1:123456789012"
    assert leaks.gone(f"{account}:vpc/vpc-00000000", "us-east-1")
    assert leaks.gone("arn:aws:eks:us-east-1:123456789012:cluster/nowhere", "us-east-1")
    assert not leaks.gone(f"{account}:new-kind/n-1", "us-east-1"), "what nobody can be asked about counts as there"


@pytest.mark.parametrize(("answers", "left"), [(1, ""), (0, "terraform_data.inside")])
def test_a_cluster_that_is_gone_is_forgotten_and_one_that_answers_is_not(tmp_path, monkeypatch, answers, left):
    (tmp_path / "source").mkdir()
    backend = 'terraform {\n  backend "local" {}\n}\n'
    (tmp_path / "source/main.tf").write_text(backend + 'resource "terraform_data" "inside" {}\n')
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/kubectl").write_text(f"#!/bin/sh\nexit {answers}\n")
    (tmp_path / "bin/kubectl").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    words = [f"infra.folder={tmp_path}/state", "infra.variables.context=mine", "infra.cluster_is_gone=true"]
    target = infra.Target("kubernetes", words, source=tmp_path / "source")
    target.init()
    target.call("apply", "-input=false", "-auto-approve", failure="no apply")
    if answers == 0:
        with pytest.raises(UserError, match="the cluster mine answers"):
            target.forget_a_gone_cluster()
    else:
        target.forget_a_gone_cluster()
    assert target.call("state list", failure="no list").strip() == left
