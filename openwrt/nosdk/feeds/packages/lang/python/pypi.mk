# Nothing: the SDK downloads the source archive, `make ipk` has the wheel.
