"""results folder -> the same with few big table files for past days, as one Prefect flow run"""

from pathlib import PurePosixPath
from typing import Annotated, Any

from prefect import flow, get_run_logger
from prefect.client.schemas.objects import State
from prefect.runtime import flow_run
from prefect.states import Completed
from pydantic import Field

from ferflow.compaction import compact
from ferflow.errors import FerflowError
from flows.compact_report import describe_compacted, results_at
from flows.server import failed, result_on_server


def _name_run() -> str:
    return f"compact: {PurePosixPath(flow_run.parameters['results']).name}"


@flow(flow_run_name=_name_run, persist_result=False)
def compact_results(results: str = "results", older_than_days: Annotated[int, Field(ge=0)] = 1) -> State[Any]:
    """Merge the many small table files of past days into a few big ones, so that queries stay fast.

    No row is lost or doubled, and it may run at any time, also while videos are analysed and tables are read.

    Args:
        results: Folder or bucket with the results, for example /data/results or s3://bucket/results.
        older_than_days: 1 merges all days before today, 2 those before yesterday; days are those of UTC.
    """
    try:
        folder = results_at(results)
        compacted = compact(folder, older_than_days=older_than_days) if folder else None
    except FerflowError as error:
        return failed(error)
    for sentence in compacted.left if compacted else ():
        get_run_logger().warning(sentence)
    said = describe_compacted(results, folder, compacted)
    get_run_logger().info("%s", said)
    return Completed(message=said, data=said)


def compact_on_server(results: str, older_than_days: int) -> str:
    """Run the flow in this process, on the Prefect server that is configured; gives the sentence that it ended with.

    Raises:
        FerflowError: no server answers, or the results cannot be reached.
    """
    said: str = result_on_server(compact_results, results, older_than_days)
    return said
