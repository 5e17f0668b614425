from hypothesis import settings

# A busy machine is no failure: no example is timed.
settings.register_profile("leanfleet", deadline=None)
settings.load_profile("leanfleet")
