resource "aws_vpc" "main" {
  # checkov:skip=CKV2_AWS_11:a network of some hours, where one group's machines talk to each other; flow logs would cost more than they tell
  cidr_block           = var.vpc_cidr
  enable_dns_support   = true
  enable_dns_hostnames = true
  tags                 = { Name = var.name }
  # What costs something is in this network, so that it waits, too.
  depends_on = [aws_scheduler_schedule.expiry]
}

data "aws_ec2_instance_type_offerings" "here" {
  for_each      = toset([var.head_type, var.worker_type])
  location_type = "availability-zone"
  filter {
    name   = "instance-type"
    values = [each.key]
  }
}

locals {
  # Zones that have both kinds of machines.
  zones = sort(setintersection([for offered in data.aws_ec2_instance_type_offerings.here : offered.locations]...))
}

# The zone of the day on which the set was made: another one that has these machines, too, must not replace them.
resource "terraform_data" "zone" {
  input            = var.zone != null ? var.zone : try(local.zones[0], "")
  triggers_replace = [var.zone]
  lifecycle {
    ignore_changes = [input]
    precondition {
      condition     = length(local.zones) > 0 && (var.zone == null || contains(local.zones, coalesce(var.zone, "-")))
      error_message = "${var.zone == null ? "no zone of ${var.region}" : var.zone} has both ${var.head_type} and ${var.worker_type}; those that have: ${join(", ", local.zones)}."
    }
  }
}

resource "aws_subnet" "private" {
  vpc_id                  = aws_vpc.main.id
  cidr_block              = cidrsubnet(var.vpc_cidr, 4, 0)
  availability_zone       = terraform_data.zone.output
  map_public_ip_on_launch = false
  tags                    = { Name = "${var.name}-private" }
}

# The NAT gateway's and the bastion's; no worker is in it.
resource "aws_subnet" "public" {
  vpc_id                  = aws_vpc.main.id
  cidr_block              = cidrsubnet(var.vpc_cidr, 8, 255)
  availability_zone       = terraform_data.zone.output
  map_public_ip_on_launch = false
  tags                    = { Name = "${var.name}-public" }
}

resource "aws_internet_gateway" "main" {
  vpc_id = aws_vpc.main.id
}

resource "aws_route_table" "public" {
  vpc_id = aws_vpc.main.id
}

resource "aws_route" "out" {
  route_table_id         = aws_route_table.public.id
  destination_cidr_block = "0.0.0.0/0"
  gateway_id             = aws_internet_gateway.main.id
}

resource "aws_route_table_association" "public" {
  subnet_id      = aws_subnet.public.id
  route_table_id = aws_route_table.public.id
}

resource "aws_eip" "nat" {
  # checkov:skip=CKV2_AWS_19:it belongs to the NAT gateway
  count      = var.nat ? 1 : 0
  domain     = "vpc"
  depends_on = [aws_scheduler_schedule.expiry]
}

resource "aws_nat_gateway" "main" {
  count         = var.nat ? 1 : 0
  allocation_id = aws_eip.nat[0].id
  subnet_id     = aws_subnet.public.id
  depends_on    = [aws_internet_gateway.main]
}

resource "aws_route_table" "private" {
  vpc_id = aws_vpc.main.id
}

resource "aws_route" "nat" {
  count                  = var.nat ? 1 : 0
  route_table_id         = aws_route_table.private.id
  destination_cidr_block = "0.0.0.0/0"
  nat_gateway_id         = aws_nat_gateway.main[0].id
}

resource "aws_route_table_association" "private" {
  subnet_id      = aws_subnet.private.id
  route_table_id = aws_route_table.private.id
}

# Data and checkpoints do not go through the NAT gateway.
resource "aws_vpc_endpoint" "s3" {
  vpc_id            = aws_vpc.main.id
  service_name      = "com.amazonaws.${var.region}.s3"
  vpc_endpoint_type = "Gateway"
  route_table_ids   = [aws_route_table.private.id]
}

resource "aws_vpc_endpoint" "ssm" {
  for_each            = var.access == "ssm" ? toset(["ssm", "ssmmessages", "ec2messages"]) : []
  vpc_id              = aws_vpc.main.id
  service_name        = "com.amazonaws.${var.region}.${each.key}"
  vpc_endpoint_type   = "Interface"
  subnet_ids          = [aws_subnet.private.id]
  security_group_ids  = [aws_security_group.endpoints[0].id]
  private_dns_enabled = true
}

# Takes every right from the group that AWS makes by itself.
resource "aws_default_security_group" "closed" {
  vpc_id = aws_vpc.main.id
}

resource "aws_security_group" "hosts" {
  name        = "${var.name}-hosts"
  description = "Head and workers: everything among themselves, ssh from the bastion"
  vpc_id      = aws_vpc.main.id
}

resource "aws_security_group_rule" "among_hosts" {
  description       = "Workers meet on ports of their choice, and EFA needs all of them"
  type              = "ingress"
  security_group_id = aws_security_group.hosts.id
  protocol          = "-1"
  from_port         = 0
  to_port           = 0
  self              = true
}

resource "aws_security_group_rule" "to_hosts" {
  description       = "EFA wants the way out to the group itself to be named"
  type              = "egress"
  security_group_id = aws_security_group.hosts.id
  protocol          = "-1"
  from_port         = 0
  to_port           = 0
  self              = true
}

resource "aws_security_group_rule" "out" {
  description       = "Package registries and the services of AWS: HTTPS only"
  type              = "egress"
  security_group_id = aws_security_group.hosts.id
  protocol          = "tcp"
  from_port         = 443
  to_port           = 443
  cidr_blocks       = ["0.0.0.0/0"]
}

resource "aws_security_group_rule" "apt" {
  description       = "Mirrors of Ubuntu, whose packages are signed, speak HTTP"
  type              = "egress"
  security_group_id = aws_security_group.hosts.id
  protocol          = "tcp"
  from_port         = 80
  to_port           = 80
  cidr_blocks       = ["0.0.0.0/0"]
}

resource "aws_security_group_rule" "ssh_from_bastion" {
  count                    = var.access == "bastion" ? 1 : 0
  description              = "ssh from the bastion"
  type                     = "ingress"
  security_group_id        = aws_security_group.hosts.id
  protocol                 = "tcp"
  from_port                = 22
  to_port                  = 22
  source_security_group_id = aws_security_group.bastion[0].id
}

resource "aws_security_group" "bastion" {
  count       = var.access == "bastion" ? 1 : 0
  name        = "${var.name}-bastion"
  description = "ssh from the given addresses, and on to the hosts"
  vpc_id      = aws_vpc.main.id
  ingress {
    description = "ssh from where you are"
    protocol    = "tcp"
    from_port   = 22
    to_port     = 22
    cidr_blocks = var.bastion_cidrs
  }
  egress {
    description = "ssh to the hosts"
    protocol    = "tcp"
    from_port   = 22
    to_port     = 22
    cidr_blocks = [var.vpc_cidr]
  }
}

resource "aws_security_group" "endpoints" {
  count       = var.access == "ssm" ? 1 : 0
  name        = "${var.name}-endpoints"
  description = "HTTPS from the network to Session Manager"
  vpc_id      = aws_vpc.main.id
  ingress {
    description = "HTTPS from the hosts"
    protocol    = "tcp"
    from_port   = 443
    to_port     = 443
    cidr_blocks = [var.vpc_cidr]
  }
}
