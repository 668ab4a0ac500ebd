from picture_folders import images  # noqa: F401 (a fixture)
