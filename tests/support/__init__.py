"""Servers, fixtures and reference implementations that tests share."""
