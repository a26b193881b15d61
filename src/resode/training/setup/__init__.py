"""What an experiment needs before its first step: data, network, form, memory."""
