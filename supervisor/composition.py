"""Puts one supervisor together from its parts; runs nothing."""

import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from agents import engine, facts, tls, web
from agents.contract import EngineFacts
from agents.networks import NetworkReader
from agents.rpc_protocol import probe
from supervisor import files
from supervisor.adapters.agent_client import AgentClient
from supervisor.adapters.authority import Authority
from supervisor.adapters.catalogue_file import read_catalogue
from supervisor.adapters.device_files import DeviceFiles
from supervisor.adapters.device_greeting import DeviceGreeter
from supervisor.adapters.engine_architectures import EngineArchitectures
from supervisor.adapters.engine_http import EngineHttp
from supervisor.adapters.engine_shelf import EngineShelf
from supervisor.adapters.header_store import HeaderStore
from supervisor.adapters.held_probe import HeldProbe
from supervisor.adapters.hub_etags import etags_of
from supervisor.adapters.hub_repo import RepoHeaders
from supervisor.adapters.hub_search import HubSearch
from supervisor.adapters.link_probe import LinkProbe
from supervisor.adapters.link_process import LinkProcesses
from supervisor.adapters.llama_server import (
    LlamaServerClient,
    LlamaServers,
    load_or_make_engine_key,
)
from supervisor.adapters.memory_oracle import MemoryOracle
from supervisor.adapters.model_checks import ModelChecks
from supervisor.adapters.model_places import Place, places
from supervisor.adapters.model_removal import places_of, removed
from supervisor.adapters.model_scanner import ModelScanner
from supervisor.adapters.option_files import LIMIT_S, OptionFileReader, read_files
from supervisor.adapters.release_site import TOKEN_VARIABLE, ReleaseSite
from supervisor.adapters.store import Store
from supervisor.api.auth import load_or_make_key, load_or_make_session_secret
from supervisor.api.http_server import page_server
from supervisor.api.join_api import create_join_app
from supervisor.api.metrics_api import Metrics
from supervisor.api.rest import Services
from supervisor.api.web import create_app
from supervisor.core.entities import PullView
from supervisor.fetching.cached import HubFiles, launch_reader
from supervisor.fetching.processes import FetchProcesses
from supervisor.listening import Addresses
from supervisor.ports import ModelFetcher
from supervisor.service.device_engines import DeviceEngines
from supervisor.service.doctoring import Doctoring
from supervisor.service.engine_change import EngineChanger
from supervisor.service.engine_installing import EngineInstaller
from supervisor.service.engine_supply import EngineSupply
from supervisor.service.events import EventBus
from supervisor.service.fitting import Fitter, listed
from supervisor.service.gateway import Gateway
from supervisor.service.holdings import Holdings
from supervisor.service.journal import Journal
from supervisor.service.keyring import KeyRing
from supervisor.service.library import Library
from supervisor.service.main_engine import found_engines, help_of, remember_first
from supervisor.service.measuring import Measurer
from supervisor.service.model_upkeep import ModelUpkeep
from supervisor.service.on_demand import OnDemand
from supervisor.service.own_log import OwnLog
from supervisor.service.pulls import Pulls
from supervisor.service.pushing import Pusher
from supervisor.service.reconciler import Reconciler
from supervisor.service.registry import Registry
from supervisor.service.reporting import Reporter
from supervisor.service.request_log import REQUEST, RequestLog
from supervisor.service.sessions import Sessions
from supervisor.service.spreading import Spreader
from supervisor.service.suggesting import Suggester
from supervisor.service.tools import Identity, MainHost, Tools
from supervisor.settings import Settings


@dataclass(frozen=True, slots=True)
class Parts:
    """One supervisor, put together and not yet running."""

    services: Services
    journal: Journal
    context: ssl.SSLContext
    links: LinkProcesses
    supply: EngineSupply
    servers: list[tuple[web.Web, list[socket.socket]]]


async def compose(
    settings: Settings,
    folder: Path,
    store: Store,
    addresses: Addresses,
    own_networks: NetworkReader,
) -> Parts:
    """Connect all parts of one supervisor; nothing of it runs yet.

    Args:
        settings: What the operator set.
        folder: For what is kept; held by us.
        store: In that folder.
        addresses: With the sockets that listen already.
        own_networks: Of this host.

    Raises:
        ProjectError: A file in the folder cannot be used.
    """
    authority = Authority(folder / "authority")
    inherited = engine.inherited()
    engines = await found_engines(inherited, explicit=settings.engine_folder, folder=folder)
    main_host = await _main_host(folder, inherited, engines)
    bus = EventBus()
    context = tls.client_context(
        authority.certificate_pem, authority.supervisor_certificate, authority.supervisor_key
    )

    def connect(agent_id: str, name: str, address: str, rest_port: int) -> AgentClient:
        return AgentClient(agent_id, name, address, rest_port, context)

    registry = Registry(settings, store, authority, connect, bus)
    registry.rpc_protocol = main_host.engine.rpc_protocol if main_host.engine else ""
    registry.engine_build = main_host.engine.build if main_host.engine else ""
    links = LinkProcesses(folder, main_host.boot_id)
    journal = Journal(store, bus)
    registry.on_change = lambda name, change, reason: journal.note(
        "device", name, change, text=reason
    )
    links.prepare()
    engine_key = load_or_make_engine_key(main_host.key_file)
    cached = HubFiles()
    pulls = Pulls(folder, cached, FetchProcesses(folder, main_host.boot_id, inherited), bus)
    read_to_launch = launch_reader(pulls.local, cached.find, folder / "cache")
    library = Library(_scanner(settings, folder, main_host), bus)
    tools = Tools(
        settings=settings,
        registry=registry,
        store=store,
        read_model=library.reading(read_to_launch),
        read_any_model=library.reading(read_to_launch),
        name_model=library.named,
        projector_of=library.projector_of,
        names_of=library.names_of,
        fetch_model=_listed_once_fetched(pulls, library),
        estimate_memory=MemoryOracle(lambda: main_host.engine, inherited),
        host_available_bytes=lambda: facts.memory()[1],
        probe=probe,
        engines=LlamaServers(folder / "children.json", main_host.boot_id),
        connect_engine=lambda port: LlamaServerClient(port, engine_key),
        links=links,
        identity=Identity(
            authority.supervisor_certificate,
            authority.supervisor_key,
            authority.certificate_path,
        ),
        main_host=main_host,
        journal=journal,
        reaches=LinkProbe(context),
        held=HeldProbe(context),
        own_networks=own_networks,
        engine_key=engine_key,
        read_option_files=OptionFileReader(read_files, LIMIT_S),
    )
    reconciler = Reconciler(tools, bus)
    spreader = Spreader(tools)
    own_log = OwnLog()
    own_log.install()
    key = load_or_make_key(folder)
    keyring = KeyRing(store, key)
    session_secret = load_or_make_session_secret(folder)
    reporter = Reporter(
        tools, reconciler.all, engines, own_log, secrets=[key, engine_key, session_secret]
    )
    request_log = RequestLog(store)
    metrics = Metrics(reconciler.all, registry.devices, bus, lambda: gateway.lane_counts)
    request_log.on_note.append(metrics.note)
    request_log.on_note.append(lambda record: bus.publish(REQUEST, record.model_dump(mode="json")))

    gateway = Gateway(
        settings,
        reconciler,
        EngineHttp(tools.engine_key),
        keyring,
        OnDemand(settings, reconciler, library.known_name, reconciler.model_settings.merged),
        request_log.note,
    )
    shelf = EngineShelf(folder, inherited)
    device_engines = DeviceEngines(registry, shelf)
    changer = EngineChanger(tools, reconciler, shelf, device_engines, bus)
    supply = EngineSupply(registry, device_engines, main_host, lambda: changer.is_running)
    services = Services(
        settings=settings,
        registry=registry,
        reconciler=reconciler,
        measurer=Measurer(tools, bus),
        pusher=Pusher(tools, reconciler.planner, spreader, reconciler.all),
        holdings=Holdings(tools, reconciler.planner, spreader, library, reconciler.all),
        pulls=pulls,
        launches=journal,
        bus=bus,
        main_host=main_host,
        engines=tuple(engines),
        library=library,
        upkeep=ModelUpkeep(
            library,
            reconciler.all,
            removed,
            ModelChecks(etags_of),
            places_of,
            lambda: [(place.source, place.path) for place in _places(settings, main_host)],
        ),
        join_endpoints=addresses.agents_endpoints,
        fingerprint=authority.fingerprint,
        server_pin=authority.server_pin(),
        url=addresses.url,
        keyring=keyring,
        sessions=Sessions(session_secret, keyring),
        hub=HubSearch(),
        journal=journal,
        reporter=reporter,
        request_log=request_log,
        gateway=gateway,
        metrics=metrics,
        suggester=Suggester(
            Fitter(tools, reconciler.planner, listed(library.known_name)),
            RepoHeaders(folder / "cache"),
            read_catalogue,
            folder / "suggest",
        ),
        doctoring=Doctoring(
            tools,
            DeviceGreeter(context),
            reconciler.answer,
            reconciler.all,
            url=addresses.url,
            join_endpoints=addresses.agents_endpoints,
        ),
        engine_installer=EngineInstaller(
            ReleaseSite(settings.engine_site, inherited.get(TOKEN_VARIABLE, "")),
            shelf,
            lambda: [device.facts for device in registry.devices() if device.facts],
            lambda: main_host.engine,
            lambda: changer.is_running,
        ),
        engine_changer=changer,
    )
    join_app = create_join_app(
        registry,
        authority.certificate_pem,
        DeviceFiles(folder),
        settings.heartbeat_s,
        settings.lease_s,
        shelf.path,
    )
    join_web = web.mutual_tls(
        join_app,
        certificate=authority.supervisor_certificate,
        key=authority.supervisor_key,
        authority=authority.certificate_path,
        need_client=False,
    )
    page = page_server(create_app(services, files.dashboard()), settings)
    servers = [(page, addresses.web), (join_web, addresses.agents)]
    return Parts(services, journal, context, links, supply, servers)


def _listed_once_fetched(pulls: Pulls, library: Library) -> ModelFetcher:
    """So that the plan for the file finds what lies beside it."""

    async def fetch(deployment: str, reference: str, tell: Callable[[PullView], None]) -> Path:
        path = await pulls.file_for(deployment, reference, tell)
        await library.refresh()
        return path

    return fetch


def _places(settings: Settings, main_host: MainHost) -> tuple[Place, ...]:
    return places(main_host.inherited, Path.home(), settings.model_folders)


def _scanner(settings: Settings, folder: Path, main_host: MainHost) -> ModelScanner:
    """What looks at the models of this host, for the engine that it has at the moment."""
    architectures = EngineArchitectures()

    def knows(architecture: str) -> bool | None:
        program = main_host.engine.llama_server if main_host.engine else ""
        return architectures.knows(program, architecture)

    headers = HeaderStore(folder / "library.json")
    return ModelScanner(lambda: _places(settings, main_host), headers, knows)


async def _main_host(
    folder: Path, inherited: dict[str, str], engines: list[EngineFacts]
) -> MainHost:
    usable = [found for found in engines if found.llama_server and not found.problem]
    chosen = next(iter(usable), next(iter(engines), None))
    help_text = await help_of(chosen, inherited)
    remember_first(chosen, folder)
    (folder / "empty-config").mkdir(exist_ok=True)
    host = MainHost(
        name=facts.device_name(),
        boot_id=facts.boot_id(),
        platform=facts.platform_name(),
        cores=facts.usable_cores(),
        engine=chosen,
        known_flags=frozenset(),
        inherited=inherited,
        folder=folder,
    )
    host.take(chosen, help_text)
    return host
