"""Operators: what a kernel is as a linear map of images, before any network is made of it."""
