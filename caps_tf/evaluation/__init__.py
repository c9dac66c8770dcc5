"""What test.py computes and draws: NumPy arrays in; JSON, PNG figures and an HTML page out. No TensorFlow.

Modules:
    predictions: the container of one test part's scores, labels and viewpoints.
    metrics: accuracies with confidence intervals, confusion matrices, the JSON report.
    training_log: reads a run's log.jsonl.
    robustness: what attacks leave of the accuracy.
    figures, mistakes, trajectories, credit: matplotlib figures; style: the look they share.
    report: writes all of it into one directory.
"""
