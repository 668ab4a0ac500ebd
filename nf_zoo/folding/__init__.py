"""From any network here to a plain one for inference."""
