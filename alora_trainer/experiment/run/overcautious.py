"""Settings that count although they cannot change a result, so that what depends on them is said in one place."""

from __future__ import annotations

# Settings that make a result anew although they cannot change it (or only its last digits), and why they are left so.
OVERCAUTIOUS = {
    "tune.disable_tqdm": "one of many settings of the Trainer: to tell which of them cannot matter is not our knowledge",
    "tune.save_steps": "as tune.disable_tqdm; how often checkpoints are written",
    "record.disable_tqdm": "as tune.disable_tqdm",
    "evaluation.batch_size": "padding moves the last digits of a score",
    "evaluation.task_folder": "without general_tasks nothing reads it; who sets it sets both",
    "alora.storage_device": "sums in another order move the last digits",
    "alora.init_memory": "sums in another order move the last digits",
    "alora.log_drift": "it only says more in the log; who sets it wants that log",
    "alora.omega_device": "sums in another order move the last digits",
    "alora.lam_end_factor": "nothing reads it with a constant schedule; who sets it sets both",
    "fisher.location": "sums in another order move the last digits",
    "curvature.location": "sums in another order move the last digits",
    "curvature.parts": "each part's own decompositions may move the last digits",
}
