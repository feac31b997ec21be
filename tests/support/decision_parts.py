"""Parts of metrics.json that say whether the student may replace the teacher."""


def make_point(share, difference, threshold=0.8, teacher=0.9):
    return {
        "threshold": threshold,
        "share": share,
        "value": teacher + difference,
        "interval": [teacher + difference - 0.03, teacher + difference + 0.03],
        "difference": difference,
        "difference_interval": [difference - 0.01, difference + 0.01],
    }


POINTS = [
    make_point(0.0, 0.0, threshold=1.0000001),
    make_point(0.5, -0.005),
    make_point(1.0, -0.2, threshold=0.0),
]


def make_cascade(number=1, holds=True):
    """A cascade that chose a point by its number; None: none."""
    chosen = None if number is None else POINTS[number]
    holds = None if number is None else holds
    return {"margin": 0.02, "points": POINTS, "chosen": chosen, "holds": holds, "rows": 400}


def make_confidence():
    bins = [(0.05 + i / 10, min(1.0, 0.1 + i / 10), 40) for i in range(10)]
    calibration = {"means": [0.0] * 5, "scales": [1.0] * 5, "weights": [0, 1.0, 0, 0, 0, 0]}
    return {
        "calibration": calibration,
        "error": 0.041,
        "auroc": 0.83,
        "bins": bins,
        "rows": 400,
    }


def make_savings(teacher=2.0, student=0.1, saved=900.0, inputs=5000):
    return {
        "teacher_usd_per_1000": teacher,
        "student_usd_per_1000": student,
        "spent_usd": 4.5,
        "saved_usd_per_million": saved,
        "break_even_inputs": inputs,
    }


def make_comparison(than, difference, low, high, metric="exact_match"):
    return {
        "system": "distilled",
        "than": than,
        "metric": metric,
        "difference": difference,
        "interval": [low, high],
        "p_value": 0.01,
        "smallest": 0.02,
    }


def decide_on(measured, cascade=None, **parts):
    """Metrics with a decision: a cascade, and the others beside it."""
    found = {
        "cascade": cascade or make_cascade(),
        "confidence": make_confidence(),
        "savings": make_savings(),
    }
    return measured | found | parts
