"""Read back by the parser of Prometheus' own client library."""

import math

from prometheus_client.parser import text_string_to_metric_families

from api_server.exposition import counter, gauge, histogram
from protocol.metrics import Histogram


def test_families_are_read_back_as_they_were() -> None:
    seen = Histogram.of((0.5, 1.0))
    for value in (0.25, 0.5, 0.75, 7.0):
        seen.observe((0.5, 1.0), value)
    text = "".join(
        [
            gauge("one", "A gauge.", 1.5, {}),
            counter("two:total", "A counter.", [({"code": "200"}, 3), ({"code": "404"}, 0)]),
            histogram("three_seconds", "A histogram.", (0.5, 1.0), seen, {"model_name": "m"}),
            histogram("four_seconds", "Another.", (0.5, 1.0), Histogram.of((0.5, 1.0)), {}),
        ]
    )
    one, two, three, four = text_string_to_metric_families(text)
    assert (one.type, one.documentation, [tuple(sample)[:3] for sample in one.samples]) == (
        "gauge",
        "A gauge.",
        [("one", {}, 1.5)],
    )
    assert two.type == "counter"
    assert [(sample.labels["code"], sample.value) for sample in two.samples] == [("200", 3), ("404", 0)]
    assert three.type == four.type == "histogram"
    assert [(sample.name, sample.labels.get("le"), sample.value) for sample in three.samples] == [
        ("three_seconds_bucket", "0.5", 2),
        ("three_seconds_bucket", "1.0", 3),
        ("three_seconds_bucket", "+Inf", 4),
        ("three_seconds_sum", None, 8.5),
        ("three_seconds_count", None, 4),
    ]
    assert {sample.labels["model_name"] for sample in three.samples} == {"m"}
    assert [sample.value for sample in four.samples] == [0] * 5


def test_a_label_may_hold_anything() -> None:
    name = 'models\\a "b"\nc é'
    [family] = text_string_to_metric_families(gauge("x", "y", math.inf, {"model_name": name}))
    assert family.samples[0].labels == {"model_name": name}
    assert family.samples[0].value == math.inf
