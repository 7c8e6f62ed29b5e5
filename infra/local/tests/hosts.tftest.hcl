# terraform test: what is planned, without making it.
variables {
  folder = "./hosts"
}

run "plans_hosts_in_a_folder" {
  command = plan
  assert {
    condition     = endswith(terraform_data.hosts.input.folder, "/hosts")
    error_message = "the folder must be absolute"
  }
}

run "refuses_no_hosts" {
  command = plan
  variables {
    num_hosts = 0
  }
  expect_failures = [var.num_hosts]
}

run "refuses_half_a_slot" {
  command = plan
  variables {
    slots = 1.5
  }
  expect_failures = [var.slots]
}
