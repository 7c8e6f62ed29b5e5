"""Which tool for my job: common tasks measured in every system that does them. `make guide`, `make choose`."""
