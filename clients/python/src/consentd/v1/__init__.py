"""The contract of consentd, as generated: the messages, enums and gRPC stubs of `proto/consent/v1`."""
