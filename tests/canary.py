"A module that no file may have imported or called"
CALLED = []


def call(**given):
    CALLED.append(given)
    raise RuntimeError("a file made the library call this")
