"""Requests and responses as types: decoding a body is validating it."""
