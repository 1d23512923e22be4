"""Stand-ins for the packages wandb and mlflow: modules with the signatures of the functions that
medjax calls, which record the calls and refuse what the real ones refuse.

Sources: docs.wandb.ai (`wandb.init`, `Run.log`, `Run.finish`, `Image`), mlflow/tracking/fluent.py
and mlflow/utils/validation.py.
"""

import re
import types

WANDB, MLFLOW = "wandb", "mlflow"
NAMES = re.compile(r"^[/\w.\- ]*$")


class Service:
    """What a server has after some calls.

    Attributes:
      runs: id -> {name, config, rows, files, status}; rows are (step, name, value).
      calls: names of the functions, in order. broken: names of functions that raise.
    """

    def __init__(self):
        self.runs, self.calls, self.broken, self.active = {}, [], set(), None

    def heard(self, name):
        self.calls.append(name)
        if name in self.broken:
            raise ConnectionError(f"no answer\nto {name}")

    def begin(self, identity, name, config):
        identity = identity or f"id{len(self.runs)}"
        new = {"name": name, "config": config, "rows": [], "files": [], "params": {}}
        self.runs.setdefault(identity, new)["status"] = "running"
        return identity

    def rows(self, identity):
        return self.runs[identity]["rows"]


def wandb(service):
    """The module `wandb` of a service."""
    module = types.ModuleType(WANDB)

    class Image:
        def __init__(self, data_or_path, mode=None, caption=None):
            self.path = data_or_path

    class Run:
        def __init__(self, identity):
            self.id, self.axes = identity, {}
            self.step = len(service.runs[identity]["rows"])  # the first that can still be written

        def define_metric(self, name, step_metric=None, step_sync=None, hidden=None):
            service.heard("define_metric")
            self.axes[name] = step_metric

        def log(self, data, step=None, commit=None):
            service.heard("log")
            assert step is None or step >= self.step, "values of an earlier step are dropped"
            self.step = self.step + 1 if step is None else step
            axis = self.axes["*"]
            step = data[axis]
            for name, value in data.items():
                if name == axis:
                    continue
                if isinstance(value, Image):
                    service.runs[self.id]["files"].append((step, name, value.path))
                else:
                    service.rows(self.id).append((step, name, value))

        def finish(self, exit_code=None, quiet=None):
            service.heard("finish")
            service.runs[self.id]["status"] = exit_code

    def init(
        entity=None,
        project=None,
        dir=None,
        id=None,
        name=None,
        notes=None,
        tags=None,
        config=None,
        *,
        resume=None,
        mode=None,
    ):
        service.heard("init")
        assert id is None or (resume == "allow" and id in service.runs)
        service.project, service.dir = project, dir
        return Run(service.begin(id, name, config))

    module.init, module.Image = init, Image
    return module


def mlflow(service):
    """The module `mlflow` of a service."""
    module = types.ModuleType(MLFLOW)

    def set_experiment(experiment_name=None, experiment_id=None):
        service.heard("set_experiment")
        service.project = experiment_name

    def start_run(run_id=None, experiment_id=None, run_name=None, nested=False, tags=None):
        service.heard("start_run")
        if service.active:
            raise Exception(f"Run with UUID {service.active} is already active.")
        assert run_id is None or run_id in service.runs
        service.active = service.begin(run_id, run_name, None)
        return types.SimpleNamespace(info=types.SimpleNamespace(run_id=service.active))

    def log_params(params, synchronous=None):
        service.heard("log_params")
        assert len(params) <= 100
        for name, value in params.items():
            assert NAMES.match(name) and len(name) <= 250 and len(str(value)) <= 500
            held = service.runs[service.active]["params"]
            assert held.setdefault(name, value) == value, "a parameter never changes"

    def log_metrics(metrics, step=None, synchronous=None):
        service.heard("log_metrics")
        assert len(metrics) <= 1000
        for name, value in metrics.items():
            assert NAMES.match(name) and "//" not in name and len(name) <= 250
            service.rows(service.active).append((step, name, value))

    def log_artifact(local_path, artifact_path=None):
        service.heard("log_artifact")
        service.runs[service.active]["files"].append(local_path)

    def end_run(status="FINISHED"):
        service.heard("end_run")
        if service.active:
            service.runs[service.active]["status"], service.active = status, None

    for function in (set_experiment, start_run, log_params, log_metrics, log_artifact, end_run):
        setattr(module, function.__name__, function)
    return module
