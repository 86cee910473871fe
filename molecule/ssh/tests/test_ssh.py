def test_x(host):
    assert host
