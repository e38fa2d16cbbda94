"""The messages and stubs of the contract matchflow.v1, generated from the .proto files beside them."""
