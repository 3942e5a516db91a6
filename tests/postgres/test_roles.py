"""What the service needs of PostgreSQL: a role, a place of its own, and sessions; as docs/postgresql.md tells it."""

import re
from concurrent.futures import ThreadPoolExecutor

from tests.load import create_workflows, event
from tests.postgres.clusters import Cluster
from tests.postgres.conftest import Serve
from tests.postgres.test_urls import run
from tests.serving import ROOT

PAGE = (ROOT / "docs" / "postgresql.md").read_text()
THREADS = 8
SESSIONS = THREADS + 8  # of a process


def statements(heading: str) -> list[str]:
    """Those that the page shows under a heading, each for a role of another name than the tests' own."""
    (block,) = re.findall(rf"## {heading}\n.*?```sql\n(.*?)```", PAGE, re.DOTALL)
    return [one.replace("amelia", "fleet") for one in re.sub(r"--.*", "", block).split(";") if one.strip()]


def test_the_page_makes_a_database_and_a_role_that_suffice(cluster: Cluster) -> None:
    first, *rest = statements("A role and a database")
    for statement in (first, *rest):
        cluster.run(statement)
    status, said = run("init-db", AMELIA_DATABASE_URL=f"postgresql://fleet@127.0.0.1:{cluster.port}/fleet")
    assert status == 0, said


def test_the_page_makes_a_schema_that_suffices(cluster: Cluster, database: str) -> None:
    for statement in statements("In a database of others"):
        cluster.run(statement, database=database)
    url = f"postgresql://scribe@127.0.0.1:{cluster.port}/{database}"
    assert run("init-db", AMELIA_DATABASE_URL=url)[0] == 0
    sql = "SELECT DISTINCT schemaname FROM pg_tables WHERE tablename = 'workflows'"
    assert cluster.run(sql, database=database) == [("scribe",)]


def test_what_the_page_asks_the_server_is_answered(serve: Serve, cluster: Cluster, database: str) -> None:
    create_workflows(serve(), 1)
    sessions_of_service, troubles = statements("What to watch")
    assert len(cluster.run(sessions_of_service.replace("fleet-flask", "amelia-flask"), database=database)) > 1
    assert cluster.run(troubles, database=database) == [(0, 0)]


def test_a_role_that_may_not_make_tables_is_refused_with_a_sentence(cluster: Cluster, database: str) -> None:
    assert run("init-db", AMELIA_DATABASE_URL=cluster.url(database))[0] == 0
    cluster.run(
        "CREATE ROLE guest LOGIN; GRANT SELECT, INSERT ON ALL TABLES IN SCHEMA public TO guest", database=database
    )
    status, said = run("serve", AMELIA_DATABASE_URL=f"postgresql://guest@127.0.0.1:{cluster.port}/{database}")
    assert (status, len(said.splitlines())) == (1, 1)
    assert "permission denied for schema public" in said


def test_a_process_has_no_more_sessions_than_the_page_says(serve: Serve, cluster: Cluster, database: str) -> None:
    server = serve(threads=THREADS, workers=2, log_retention_max_events=1)
    path = f"/api/workflows/{create_workflows(server, 1)[0]}/events"
    with ThreadPoolExecutor(40) as pool:
        calls = [pool.submit(server.request, "POST", path, event()) for _ in range(100)]
        calls += [pool.submit(server.request, "GET", f"/api/usage?preset=all&n={n}") for n in range(300)]
        calls += [pool.submit(server.request, "GET", f"{path}?after=1000&wait=1") for _ in range(4)]
        most = 0
        while not all(call.done() for call in calls):
            most = max(most, sessions(cluster, database))
    assert 2 < most <= 2 * SESSIONS
    print(most)
    assert f"`AMELIA_THREADS` and {SESSIONS - THREADS} more" in PAGE


def sessions(cluster: Cluster, database: str) -> int:
    """How many the service has, whose name they bear."""
    sql = "SELECT count(*) FROM pg_stat_activity WHERE datname = %s AND application_name = 'amelia-flask'"
    return int(cluster.run(sql, database)[0][0])
