"""Asks each service of AWS whether a thing is still there that the list of tags goes on naming after its end."""

from collections.abc import Callable, Mapping
from typing import Any

# Service and kind of an ARN -> (the call that describes it, the argument that takes its name).
CALLS: Mapping[tuple[str, str], tuple[str, str]] = {
    ("ec2", "instance"): ("describe_instances", "InstanceIds"),
    ("ec2", "natgateway"): ("describe_nat_gateways", "NatGatewayIds"),
    ("ec2", "volume"): ("describe_volumes", "VolumeIds"),
    ("ec2", "network-interface"): ("describe_network_interfaces", "NetworkInterfaceIds"),
    ("ec2", "elastic-ip"): ("describe_addresses", "AllocationIds"),
    ("ec2", "vpc-endpoint"): ("describe_vpc_endpoints", "VpcEndpointIds"),
    ("ec2", "vpc"): ("describe_vpcs", "VpcIds"),
    ("ec2", "subnet"): ("describe_subnets", "SubnetIds"),
    ("ec2", "security-group"): ("describe_security_groups", "GroupIds"),
    ("ec2", "launch-template"): ("describe_launch_templates", "LaunchTemplateIds"),
    ("eks", "cluster"): ("describe_cluster", "name"),
    ("elasticfilesystem", "file-system"): ("describe_file_systems", "FileSystemId"),
    ("kms", "key"): ("describe_key", "KeyId"),
    ("ssm", "document"): ("describe_document", "Name"),
    ("iam", "role"): ("get_role", "RoleName"),
}
CLIENTS = {"elasticfilesystem": "efs"}
ENDED = {"terminated", "shutting-down", "deleted", "deleting", "pendingdeletion"}


def gone(arn: str, region: str) -> bool:
    """Whether its service says that it is gone, or on its way. What no call is known for counts as there."""
    import boto3  # only those have it who use AWS
    from botocore.exceptions import ClientError

    _, _, service, _, _, rest = arn.split(":", 5)
    kind, _, name = rest.partition("/")
    arguments: dict[str, str | list[str]]
    if service == "s3":
        call, arguments = "head_bucket", {"Bucket": rest}
    elif (service, kind) in CALLS:
        call, argument = CALLS[service, kind]
        arguments = {argument: [name] if argument.endswith("Ids") else name}
    else:
        return False
    client = boto3.client(CLIENTS.get(service, service), region_name=region)
    ask: Callable[..., Any] = getattr(client, call)
    try:
        reply = ask(**arguments)
    except ClientError as error:
        code = error.response["Error"]["Code"]
        return "NotFound" in code or code in ("404", "NoSuchBucket", "NoSuchEntity", "InvalidDocument")
    states = _states(reply)
    return bool(states) and states <= ENDED


def _states(reply: Any) -> set[str]:
    """The states that an answer names, in small letters: of instances, gateways, keys, file systems, clusters."""
    found: set[str] = set()
    if isinstance(reply, list):
        for entry in reply:
            found |= _states(entry)
    elif isinstance(reply, dict):
        for key, value in reply.items():
            if key in ("State", "KeyState", "LifeCycleState", "status"):
                state = value.get("Name") if isinstance(value, dict) else value
                found |= {str(state).lower()}
            elif key in ("Reservations", "Instances", "NatGateways", "VpcEndpoints", "KeyMetadata", "FileSystems"):
                found |= _states(value)
            elif key == "cluster":
                found |= _states({"status": value.get("status")})
    return found
