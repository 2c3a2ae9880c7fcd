"""The Kafka cluster itself: whether it answers, what it can do, and which topics it has."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager

from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.client import AIOKafkaClient
from aiokafka.conn import collect_hosts
from aiokafka.errors import KafkaConnectionError, KafkaError, NoError, TopicAlreadyExistsError, for_code
from aiokafka.protocol.transaction import InitProducerIdRequest

from clickloop import topics
from clickloop.errors import BrokerError

START_SECONDS = 15.0
"""A broker that has not answered a starting client by then is not there."""


def unreachable(bootstrap_servers: str, error: BaseException) -> BrokerError:
    return BrokerError(f"no Kafka broker answers at {bootstrap_servers}: {error}")


@contextmanager
def answering(bootstrap_servers: str) -> Iterator[None]:
    """Let no error of aiokafka out of the block. Raises BrokerError."""
    try:
        yield
    except KafkaConnectionError as error:
        raise unreachable(bootstrap_servers, error) from None
    except KafkaError as error:
        raise BrokerError(f"the broker at {bootstrap_servers} stopped answering: {error!r}") from error


async def create_topics(
    bootstrap_servers: str, *, prefix: str, partitions: int, replication_factor: int = 1
) -> list[str]:
    """Create the contract's topics that don't exist yet, and return their names, once the cluster lists them.

    Raises BrokerError where the broker can't be reached or refuses.
    """
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap_servers, client_id="clickloop-admin")
    created = []
    try:
        await admin.start()
        known = set(await admin.list_topics())
        missing = [(topic, topic.name(prefix)) for topic in topics.TOPICS if topic.name(prefix) not in known]
        for topic, name in missing:
            count = partitions if topic.partitioned else 1
            if await _create(admin, NewTopic(name, count, replication_factor, topic_configs=topic.config())):
                created.append(name)
        await _listed(admin, {name for _, name in missing})
    except KafkaConnectionError as error:
        raise unreachable(bootstrap_servers, error) from None
    except KafkaError as error:
        raise BrokerError(f"creating topics at {bootstrap_servers} failed: {error}") from error
    finally:
        await admin.close()
    return created


async def _create(admin: AIOKafkaAdminClient, new: NewTopic) -> bool:
    """False where someone else has just created it. Raises BrokerError with the words of a broker that refuses."""
    answer = await admin.create_topics([new])
    for _, code, *words in answer.topic_errors:
        error = for_code(code)
        if error is TopicAlreadyExistsError:
            return False
        if error is not NoError:
            said = words[0] if words and words[0] else error.__name__
            raise BrokerError(f"the broker refuses to create {new.name}: {said}")
    return True


async def _listed(admin: AIOKafkaAdminClient, names: set[str]) -> None:
    """A broker acknowledges a new topic before every listing has it: wait for that. Raises BrokerError."""
    deadline = time.monotonic() + START_SECONDS
    while names - set(await admin.list_topics()):
        if time.monotonic() > deadline:
            raise BrokerError(f"topics were created, but are not listed after {START_SECONDS:.0f} s")
        await asyncio.sleep(0.1)


async def list_topics(bootstrap_servers: str) -> list[str]:
    """Names of the topics that the cluster has, sorted. Raises BrokerError where it can't be reached."""
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap_servers, client_id="clickloop-admin")
    try:
        await admin.start()
        return sorted(await admin.list_topics())
    except (KafkaConnectionError, OSError) as error:
        raise unreachable(bootstrap_servers, error) from None
    except KafkaError as error:
        raise BrokerError(f"listing topics at {bootstrap_servers} failed: {error!r}") from error
    finally:
        await admin.close()


async def has_idempotence(bootstrap_servers: str) -> bool:
    """Ask the broker for a producer id, as an idempotent producer would.

    What a broker says of its versions is no answer: some list the request and fail it.
    """
    client = AIOKafkaClient(bootstrap_servers=bootstrap_servers, client_id="clickloop-probe")
    request = InitProducerIdRequest(transactional_id=None, transaction_timeout_ms=60_000)
    try:
        async with asyncio.timeout(START_SECONDS):
            await client.bootstrap()
            response = await client.send(client.get_random_node(), request)
    except (KafkaConnectionError, TimeoutError, OSError) as error:
        raise unreachable(bootstrap_servers, error) from None
    except KafkaError:
        return False
    finally:
        await client.close()
    # A broker that has just started answers "not yet" where it will answer.
    answer = for_code(response.error_code)
    return answer is NoError or bool(answer.retriable)


def check_servers(servers: str) -> None:
    """Raises ValueError for what is no comma-separated list of hosts and ports."""
    try:
        for host, *_ in collect_hosts(servers):
            host.encode("idna")
    except (ValueError, IndexError):
        raise ValueError("no host:port list") from None
