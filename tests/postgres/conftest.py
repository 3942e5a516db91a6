"""A PostgreSQL server for these tests alone, and the service on it."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.postgres.clusters import Cluster, cluster_in, folder_for_clusters
from tests.serving import Server, serving

Serve = Callable[..., Server]


@pytest.fixture(scope="session")
def place_for_clusters() -> Iterator[Path]:
    """A folder for the files of servers."""
    with folder_for_clusters() as folder:
        yield folder


@pytest.fixture(scope="session")
def shared_cluster(place_for_clusters: Path) -> Iterator[Cluster]:
    """One server for all tests of this folder."""
    with cluster_in(place_for_clusters / "shared") as running:
        yield running


@pytest.fixture
def cluster(shared_cluster: Cluster) -> Cluster:
    """The shared server, running again if the test before has left it stopped."""
    if not shared_cluster.is_running:
        shared_cluster.start()
    return shared_cluster


@pytest.fixture
def database(cluster: Cluster) -> Iterator[str]:
    """The name of an empty database, which is taken away afterwards."""
    name = cluster.new_database()
    yield name
    if cluster.is_running:
        cluster.run(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def serve(tmp_path: Path, cluster: Cluster, database: str) -> Iterator[Serve]:
    """Start a server on that database, a host of its own; it is killed in the end unless it has stopped."""
    with ExitStack() as stack:
        numbers = iter(range(100))

        def start(**settings: object) -> Server:
            given = {"database_url": cluster.url(database), "workers": 2} | settings
            folder = tmp_path / f"host-{next(numbers)}"
            folder.mkdir()
            return stack.enter_context(serving(folder / "none.db", None, **given))

        yield start
