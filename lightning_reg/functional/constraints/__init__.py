"""Sets into which constraints bring weights, in place: `norms` of units, `pattern` of zeros among neighbours."""
