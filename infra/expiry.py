"""Removes what costs money of one set: what AWS runs by itself when the time of infra/aws or infra/eks is over.

Terraform puts this text into an Automation document of Systems Manager, and a schedule starts it when everything
expires and again each quarter of an hour for a day: what takes its time (a cluster whose nodes are still there, an
address whose gateway is) goes with a later call. Everything is found by its tag `distributed-ml`, so that the
schedule can be made before anything else, and also finds what an apply made that failed in the middle.
"""

import boto3
from botocore.exceptions import ClientError

LIVING = ["pending", "running", "stopping", "stopped"]


def remove(events, context=None):
    """`events`: {"name": the tag's value, "region": ...}. Returns {"removed": [...], "later": [...]} for the log."""
    name, region = events["name"], events["region"]
    ec2, eks, efs = (boto3.client(service, region_name=region) for service in ("ec2", "eks", "efs"))
    mine = [{"Name": "tag:distributed-ml", "Values": [name]}]
    removed, later = [], []

    def call(what, function, **arguments):
        try:
            function(**arguments)
            removed.append(what)
        except ClientError as error:  # in use, or on its way already: the next call sees to it
            later.append(f"{what}: {error.response['Error']['Code']}")

    state = {"Name": "instance-state-name", "Values": LIVING}
    for page in ec2.get_paginator("describe_instances").paginate(Filters=[*mine, state]):
        for reservation in page["Reservations"]:
            for machine in reservation["Instances"]:
                # One at a time: a call with several ends none when one of them cannot be ended.
                call(machine["InstanceId"], ec2.terminate_instances, InstanceIds=[machine["InstanceId"]])
    if name in [found for page in eks.get_paginator("list_clusters").paginate() for found in page["clusters"]]:
        for page in eks.get_paginator("list_nodegroups").paginate(clusterName=name):
            for group in page["nodegroups"]:
                call(group, eks.delete_nodegroup, clusterName=name, nodegroupName=group)
        call(name, eks.delete_cluster, name=name)
    living = {"Name": "state", "Values": ["pending", "available"]}
    for gateway in ec2.describe_nat_gateways(Filters=[*mine, living])["NatGateways"]:
        call(gateway["NatGatewayId"], ec2.delete_nat_gateway, NatGatewayId=gateway["NatGatewayId"])
    for endpoint in ec2.describe_vpc_endpoints(Filters=mine)["VpcEndpoints"]:
        if endpoint["VpcEndpointType"] == "Interface" and endpoint["State"].lower() not in ("deleting", "deleted"):
            call(endpoint["VpcEndpointId"], ec2.delete_vpc_endpoints, VpcEndpointIds=[endpoint["VpcEndpointId"]])
    for address in ec2.describe_addresses(Filters=mine)["Addresses"]:
        call(address["AllocationId"], ec2.release_address, AllocationId=address["AllocationId"])
    for page in efs.get_paginator("describe_file_systems").paginate():
        for disk in page["FileSystems"]:
            tags = {tag["Key"]: tag["Value"] for tag in disk["Tags"]}
            # infra/eks has no other place for results: its disk stays until `infra-down`.
            if tags.get("distributed-ml") == name and "expires" in tags:
                for target in efs.describe_mount_targets(FileSystemId=disk["FileSystemId"])["MountTargets"]:
                    call(target["MountTargetId"], efs.delete_mount_target, MountTargetId=target["MountTargetId"])
                call(disk["FileSystemId"], efs.delete_file_system, FileSystemId=disk["FileSystemId"])
    return {"removed": removed, "later": later}
