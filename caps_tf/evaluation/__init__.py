"""What test.py computes and draws: NumPy arrays in; JSON, PNG figures and an HTML page out. No TensorFlow.

Modules:
    predictions: the container of one test part's scores, labels and viewpoints.
    metrics: accuracies with confidence intervals, confusion matrices, the JSON report.
    training_log: reads a run's log.jsonl.
    robustness: what attacks leave of the accuracy.
    stored: predictions as a file, predictions.npz.
    figures, mistakes, trajectories, credit: matplotlib figures; style: the look they share.
    page: the HTML parts of the pages; report: writes all of it into one directory.
    comparison: whether two networks differ, over paired examples; compared_runs: one page about several runs.
"""
