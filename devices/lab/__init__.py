"""The lab: a device and a gateway on one machine, with an emulated link between them."""
