#!/usr/bin/env python3
"""Tests of the Helm chart, run by scripts/chart: what it renders, refuses and documents.

Golden files show a change of the output in a review; the assertions say what must hold of any output.
"""
import glob, json, os, subprocess, sys, tempfile, tomllib, unittest

import jsonschema, kubernetes_validate, yaml

HERE = os.path.dirname(os.path.abspath(__file__))
HELM = os.environ.get("HELM", "helm")
UPDATE = "--update" in sys.argv
# The oldest version that the chart admits, and a newer one.
VERSIONS = ["1.30.0", "1.34.0"]
# Kinds of which the API server alone has no schema; their fields are asserted below.
CUSTOM = {"Certificate", "HTTPRoute", "PodMonitor", "PrometheusRule", "ServiceMonitor"}
SENDER = os.path.join(HERE, "example-sender")
CHART = os.path.join(HERE, "consentd")


def read(path):
    with open(path) as file:
        return file.read()


def helm(*arguments):
    return subprocess.run([HELM, *arguments], capture_output=True, text=True)


def template(chart, *arguments, version="1.34.0"):
    done = helm("template", "consentd", chart, "--namespace", "consent", "--kube-version", version, *arguments)
    if done.returncode:
        raise AssertionError(done.stderr)
    return done.stdout


def objects(*arguments, chart=CHART, version="1.34.0"):
    return [o for o in yaml.safe_load_all(template(chart, *arguments, version=version)) if o]


def case(name):
    return ["--values", os.path.join(HERE, "cases", name + ".yaml")]


CASES = sorted(os.path.basename(f)[:-5] for f in glob.glob(os.path.join(HERE, "cases", "*.yaml")))
EVERYTHING = {name: (CHART, case(name)) for name in CASES} | {"example-sender": (SENDER, [])}


def without_helm(o):
    """An object without what only Helm's releases have."""
    if isinstance(o, dict):
        ours = {k: without_helm(v) for k, v in o.items() if k not in ("helm.sh/chart", "app.kubernetes.io/managed-by")}
        return {k: v for k, v in ours.items() if k != "checksum/config" and not (k == "annotations" and v == {})}
    return [without_helm(v) for v in o] if isinstance(o, list) else o


def kustomize_files():
    """The files of deploy/kustomize, which come from the chart, so that the two cannot differ."""
    note = "# Made from the Helm chart by scripts/chart --update.\n"
    base = objects(*case("../../kustomize/values"))
    yield "base/standalone.yaml", note + yaml.safe_dump_all(map(without_helm, base), sort_keys=False)
    deployment = only(objects(*case("../../kustomize/sidecar-values"), chart=SENDER), "Deployment")
    pod = deployment["spec"]["template"]["spec"]
    patch = {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "any"},
             "spec": {"template": {"spec": {k: v for k, v in pod.items() if k != "containers"}}}}
    yield "components/sidecar/patch.yaml", note + yaml.safe_dump(patch, sort_keys=False)


def only(objects, kind):
    found = [o for o in objects if o["kind"] == kind]
    assert len(found) == 1, f"{len(found)} of {kind}"
    return found[0]


def pod_specs(objects):
    for o in objects:
        spec = o.get("spec") or {}
        spec = spec.get("jobTemplate", {}).get("spec", spec)
        if "template" in spec:
            yield o["kind"], spec["template"]["spec"]


def env(container):
    return {e["name"]: e["value"] for e in container["env"]}


def sidecar(*arguments):
    return next(pod_specs(objects(*arguments, chart=SENDER)))[1]


class Rendered(unittest.TestCase):
    maxDiff = None

    def test_golden_files_are_current(self):
        for name, (chart, arguments) in EVERYTHING.items():
            path = os.path.join(HERE, "golden", name + ".yaml")
            # The alerts and the dashboard are compared where they come from.
            less = ["--set", "monitoring.prometheusRule=false,monitoring.dashboard=false"]
            text = template(chart, *arguments, *(less if name == "monitoring" else []))
            if UPDATE:
                with open(path, "w") as file:
                    file.write(text)
            self.assertEqual(text, read(path), f"{path}: scripts/chart --update, and look at the difference")

    def test_the_files_of_kustomize_are_the_charts(self):
        for name, text in kustomize_files():
            path = os.path.join(HERE, "..", "kustomize", name)
            if UPDATE:
                with open(path, "w") as file:
                    file.write(text)
            self.assertEqual(text, read(path), f"{path}: scripts/chart --update")

    def test_kustomize_builds_the_base_and_the_sidecar_of_labelled_workloads(self):
        kustomize = os.path.join(HERE, "..", "kustomize")
        base = self.kustomize(os.path.join(kustomize, "base"))
        self.assertEqual([o["kind"] for o in base], ["Service", "StatefulSet"])
        app = {"apiVersion": "apps/v1", "kind": "Deployment", "spec": {
            "selector": {"matchLabels": {"a": "b"}},
            "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "app", "image": "app"}]}}}}
        labelled = {**app, "metadata": {"name": "asks", "labels": {"consentd-sidecar": "true"}}}
        other = {**app, "metadata": {"name": "other"}}
        with tempfile.TemporaryDirectory(dir=kustomize) as folder:
            with open(os.path.join(folder, "apps.yaml"), "w") as file:
                yaml.safe_dump_all([labelled, other], file)
            with open(os.path.join(folder, "kustomization.yaml"), "w") as file:
                yaml.safe_dump({"resources": ["apps.yaml"], "components": ["../components/sidecar"]}, file)
            built = {o["metadata"]["name"]: o["spec"]["template"]["spec"] for o in self.kustomize(folder)}
        self.assertNotIn("initContainers", built["other"])
        self.assertEqual(built["asks"]["initContainers"][0]["restartPolicy"], "Always")
        self.assertEqual(built["asks"]["containers"], [{"name": "app", "image": "app"}])

    def kustomize(self, folder):
        done = subprocess.run([os.environ.get("KUSTOMIZE", "kustomize"), "build", folder], capture_output=True, text=True)
        self.assertEqual(done.returncode, 0, done.stderr)
        return [o for o in yaml.safe_load_all(done.stdout) if o]

    def test_lint_finds_nothing(self):
        for name, (chart, arguments) in EVERYTHING.items():
            done = helm("lint", "--strict", chart, "--kube-version", "1.34.0", *arguments)
            self.assertEqual(done.returncode, 0, f"{name}: {done.stdout}{done.stderr}")

    def test_manifests_fit_the_schemas_of_the_api(self):
        for version in VERSIONS:
            for name, (chart, arguments) in EVERYTHING.items():
                for o in objects(*arguments, chart=chart, version=version):
                    if o["kind"] not in CUSTOM:
                        with self.subTest(version=version, case=name, kind=o["kind"]):
                            kubernetes_validate.validate(o, version, strict=True)

    def test_a_manifest_with_an_unknown_field_does_not_fit(self):
        o = only(objects(*case("recorder")), "Deployment")
        o["spec"]["template"]["spec"]["containers"][0]["resurces"] = {}
        with self.assertRaises(kubernetes_validate.ValidationError):
            kubernetes_validate.validate(o, "1.34.0", strict=True)

    def test_all_pods_keep_to_restricted_pod_security(self):
        seen = 0
        for name, (chart, arguments) in EVERYTHING.items():
            for kind, pod in pod_specs(objects(*arguments, chart=chart)):
                with self.subTest(case=name, kind=kind):
                    self.assertEqual(pod["securityContext"]["seccompProfile"], {"type": "RuntimeDefault"})
                    self.assertTrue(pod["securityContext"]["runAsNonRoot"])
                    for volume in pod["volumes"]:
                        kinds = set(volume) - {"name"}
                        self.assertLessEqual(kinds, {"configMap", "emptyDir", "secret"}, volume)
                    for container in pod.get("initContainers", []) + pod["containers"]:
                        context = container["securityContext"]
                        self.assertIs(context["allowPrivilegeEscalation"], False)
                        self.assertIs(context["readOnlyRootFilesystem"], True)
                        self.assertEqual(context["capabilities"], {"drop": ["ALL"]})
                        self.assertNotEqual(context.get("runAsUser"), 0)
                        self.assertNotIn("hostPort", json.dumps(container))
                        seen += 1
        self.assertGreater(seen, 10)

    def test_no_secret_is_mounted_by_subpath(self):
        for name, (chart, arguments) in EVERYTHING.items():
            self.assertNotIn("subPath", template(chart, *arguments), name)


class Sidecars(unittest.TestCase):
    def test_every_kind_of_workload_gets_a_native_sidecar(self):
        kinds = {}
        for kind, pod in pod_specs(objects(chart=SENDER)):
            (consentd,), (app,) = pod["initContainers"], pod["containers"]
            kinds[kind] = pod
            self.assertEqual(consentd["restartPolicy"], "Always")
            self.assertEqual(consentd["startupProbe"]["httpGet"]["path"], "/readyz")
            self.assertEqual(consentd["startupProbe"]["failureThreshold"], 86400)
            self.assertEqual(consentd["livenessProbe"]["httpGet"]["path"], "/livez")
            self.assertNotIn("readinessProbe", consentd)
            self.assertNotIn("lifecycle", consentd)
            self.assertNotIn("cpu", consentd["resources"]["limits"])
            self.assertEqual(app["volumeMounts"], [{"name": "consentd-socket", "mountPath": "/run/consentd", "readOnly": True}])
            self.assertEqual(env(app)["CONSENTD_ADDR"], "unix:" + env(consentd)["CONSENTD_UNIX"])
            self.assertEqual(pod["securityContext"]["fsGroup"], 65532)
        self.assertEqual(set(kinds), {"Deployment", "StatefulSet", "Job", "CronJob"})

    def test_the_grace_period_is_the_apps_and_two_drains(self):
        for app, drain in [(30, 5), (0, 1), (600, 10)]:
            pod = sidecar("--set", f"consentd.sidecar.appSeconds={app},consentd.sidecar.drainSeconds={drain}")
            self.assertEqual(pod["terminationGracePeriodSeconds"], app + 2 * drain + 2)
            self.assertEqual(env(pod["initContainers"][0])["CONSENTD_DRAIN_TIMEOUT"], f"{drain}s")
        longer = sidecar("--set", "consentd.sidecar.terminationGracePeriodSeconds=90")
        self.assertEqual(longer["terminationGracePeriodSeconds"], 90)
        with self.assertRaisesRegex(AssertionError, "is 41, and the app's 30 seconds and twice a drain of 5 need 42"):
            sidecar("--set", "consentd.sidecar.terminationGracePeriodSeconds=41")

    def test_memory_follows_from_pairs(self):
        def memory(*settings):
            pod = sidecar("--set", ",".join("consentd." + s for s in settings))
            resources = pod["initContainers"][0]["resources"]
            self.assertEqual(resources["requests"]["memory"], resources["limits"]["memory"])
            return resources["limits"]["memory"]
        # 30 + pairs x 64 bytes + 32 + 32 x 1.2, rounded up.
        self.assertEqual(memory("pairs=0"), "101Mi")
        self.assertEqual(memory("pairs=1"), "102Mi")
        self.assertEqual(memory("pairs=16384"), "102Mi")
        self.assertEqual(memory("pairs=5000000"), "407Mi")
        self.assertEqual(memory("pairs=5000000", "sidecar.maxConnections=10", "sidecar.maxRequestMiB=64"), "412Mi")
        self.assertEqual(memory("pairs=5000000", "sidecar.resources.memoryMiB=407"), "407Mi")
        with self.assertRaisesRegex(AssertionError, "memoryMiB is 128, and 5000000 pairs .* need 407: raise it"):
            memory("pairs=5000000", "sidecar.resources.memoryMiB=128")

    def test_further_arguments_may_be_numbers_and_booleans(self):
        # `--set` reads them as such, and so does a file of values, where a number has another type.
        expected = ["--synthetic", "5000000", "--decision-log-sample", "0.1", "true"]
        with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
            file.write("extraArgs: [--synthetic, 5000000, --decision-log-sample, 0.1, true]\n".join(
                ["consentd:\n  sidecar:\n    ", ""]))
            file.flush()
            from_file = sidecar("--values", file.name)["initContainers"][0]["args"]
        flags = ",".join(expected)
        from_flags = sidecar("--set", f"consentd.sidecar.extraArgs={{{flags}}}")["initContainers"][0]["args"]
        self.assertEqual(from_file, ["serve", *expected])
        self.assertEqual(from_flags, ["serve", *expected])
        for name, part in [("recorder", "recorder"), ("receiver", "receiver"), ("standalone", "standalone")]:
            (pod,) = [spec for _, spec in pod_specs(objects(*case(name), "--set", f"{part}.extraArgs={{{flags}}}"))]
            self.assertEqual(pod["containers"][0]["args"][-len(expected):], expected, name)

    def test_an_app_may_start_before_the_table_is_loaded(self):
        pod = sidecar("--set", "consentd.sidecar.waitForTable=false")
        self.assertEqual(pod["initContainers"][0]["startupProbe"]["httpGet"]["path"], "/livez")


class Parts(unittest.TestCase):
    def test_nothing_is_made_by_default(self):
        self.assertEqual(objects(), [])

    def test_a_deleted_recorder_goes_on_until_no_endpoint_leads_to_it(self):
        for name in ["recorder", "receiver"]:
            deployment = only(objects(*case(name)), "Deployment")
            pod = deployment["spec"]["template"]["spec"]
            self.assertEqual(pod["containers"][0]["lifecycle"], {"preStop": {"sleep": {"seconds": 5}}})
            self.assertEqual(pod["terminationGracePeriodSeconds"], 5 + 2 * 10 + 2)
            self.assertEqual(deployment["spec"]["strategy"]["rollingUpdate"], {"maxSurge": 1, "maxUnavailable": 0})

    def test_services_lead_to_the_ports_of_their_pods(self):
        for name in ["recorder", "receiver", "standalone"]:
            rendered = objects(*case(name))
            service = only(rendered, "Service")
            ((_, pod),) = pod_specs(rendered)
            workload = next(o for o in rendered if o["kind"] in ("Deployment", "StatefulSet"))
            labels = workload["spec"]["template"]["metadata"]["labels"]
            self.assertLessEqual(service["spec"]["selector"].items(), labels.items())
            self.assertEqual(workload["spec"]["selector"]["matchLabels"], service["spec"]["selector"])
            ports = {port["name"] for port in pod["containers"][0]["ports"]}
            self.assertLessEqual({port["targetPort"] for port in service["spec"]["ports"]}, ports)

    def test_a_ledger_in_a_file_has_one_pod_and_keeps_its_claim(self):
        stateful = only(objects(*case("standalone")), "StatefulSet")["spec"]
        self.assertEqual(stateful["replicas"], 1)
        self.assertEqual(stateful["persistentVolumeClaimRetentionPolicy"]["whenDeleted"], "Retain")
        (claim,) = stateful["volumeClaimTemplates"]
        self.assertEqual(claim["spec"]["accessModes"], ["ReadWriteOncePod"])
        path = env(stateful["template"]["spec"]["containers"][0])["CONSENTD_LEDGER"].removeprefix("file:")
        mounts = stateful["template"]["spec"]["containers"][0]["volumeMounts"]
        self.assertIn({"name": "ledger", "mountPath": os.path.dirname(path)}, mounts)

    def test_a_cluster_may_assign_users_and_groups(self):
        ((_, pod),) = pod_specs(objects(*case("openshift")))
        self.assertNotIn("fsGroup", pod["securityContext"])
        self.assertNotIn("runAsUser", pod["containers"][0]["securityContext"])

    def test_one_replica_has_no_disruption_budget(self):
        kinds = [o["kind"] for o in objects(*case("gateway"))]
        self.assertNotIn("PodDisruptionBudget", kinds)
        self.assertEqual(only(objects(*case("recorder")), "PodDisruptionBudget")["spec"]["maxUnavailable"], 1)

    def test_network_policies_name_ports_of_the_pods_and_admit_nothing_unsaid(self):
        for name in ["recorder", "receiver", "standalone"]:
            rendered = objects(*case(name))
            policy = only(rendered, "NetworkPolicy")["spec"]
            ((_, pod),) = pod_specs(rendered)
            ports = {port["name"] for port in pod["containers"][0]["ports"]}
            for rule in policy["ingress"]:
                self.assertTrue(rule["from"])
                self.assertLessEqual({port["port"] for port in rule["ports"]}, ports)
        closed = objects(*case("openshift"), "--set", "networkPolicy.enabled=true")
        policy = only(closed, "NetworkPolicy")["spec"]
        self.assertEqual((policy["ingress"], policy["egress"]), ([], []))

    def test_a_changed_configuration_starts_new_pods(self):
        def checksum(*more):
            deployment = only(objects(*case("receiver"), *more), "Deployment")
            return deployment["spec"]["template"]["metadata"]["annotations"]["checksum/config"]
        self.assertNotEqual(checksum(), checksum("--set", "config=other"))

    def test_monitoring_finds_sidecars_by_the_name_of_their_port(self):
        rendered = objects(*case("monitoring"))
        monitor = only(rendered, "PodMonitor")
        (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
        port = sidecar()["initContainers"][0]["ports"][0]["name"]
        self.assertEqual((endpoint["port"], monitor["spec"]["selector"]), (port, {}))
        rules = only(rendered, "PrometheusRule")["spec"]["groups"]
        alerts = [rule for group in rules for rule in group["rules"]]
        self.assertGreater(len(alerts), 20)
        for alert in alerts:
            url = alert["annotations"]["runbook_url"]
            self.assertEqual(url, f"https://git.example/consentd/docs/runbooks/{alert['alert']}.md")
        dashboard = only(rendered, "ConfigMap")
        self.assertEqual(json.loads(dashboard["data"]["consentd.json"])["uid"], "consentd")
        self.assertEqual(monitor["metadata"]["labels"]["release"], "prometheus")


    def test_a_service_monitor_scrapes_ports_of_the_services(self):
        rendered = objects(*case("recorder-tls"))
        monitor, service = only(rendered, "ServiceMonitor"), only(rendered, "Service")
        self.assertLessEqual(monitor["spec"]["selector"]["matchLabels"].items(), service["metadata"]["labels"].items())
        schemes = {endpoint["port"]: endpoint.get("scheme") for endpoint in monitor["spec"]["endpoints"]}
        self.assertEqual(schemes, {"consentd-admin": None, "consentd-tls": "https"})
        self.assertIn("consentd-tls", {port["name"] for port in service["spec"]["ports"]})
        with self.assertRaisesRegex(AssertionError, "would be scraped twice"):
            objects(*case("recorder-tls"), "--set", "monitoring.podMonitor=true")


class TLS(unittest.TestCase):
    def test_listeners_that_are_reached_from_outside_serve_it_and_probes_need_none(self):
        for name, listeners, probes in [("recorder-tls", "record,admin", "consentd-probes"),
                                        ("standalone-tls", "listen,record", "consentd-admin"),
                                        ("receiver-tls", "webhook", "consentd-admin")]:
            ((_, pod),) = pod_specs(objects(*case(name)))
            (consentd,) = pod["containers"]
            variables = env(consentd)
            self.assertEqual(variables["CONSENTD_TLS_LISTENERS"], listeners)
            mounts = [mount["mountPath"] for mount in consentd["volumeMounts"]]
            for variable in ["CONSENTD_TLS_CERT_FILE", "CONSENTD_TLS_KEY_FILE", "CONSENTD_TLS_CLIENT_CA_FILE"]:
                if variable in variables:
                    self.assertIn(os.path.dirname(variables[variable]), mounts)
            ports = {port["name"]: port["containerPort"] for port in consentd["ports"]}
            for kind in ["startupProbe", "readinessProbe", "livenessProbe"]:
                self.assertEqual(consentd[kind]["httpGet"]["port"], probes)
            if probes == "consentd-probes":
                self.assertEqual(variables["CONSENTD_PROBES"], f"0.0.0.0:{ports[probes]}")
            self.assertIn(probes, ports)

    def test_a_sidecar_serves_it_only_where_it_has_a_listener(self):
        settings = "consentd.sidecar.tls.secret=tls,consentd.sidecar.listen=0.0.0.0:50051"
        (consentd,) = sidecar("--set", settings)["initContainers"]
        self.assertEqual(env(consentd)["CONSENTD_TLS_LISTENERS"], "listen")
        (consentd,) = sidecar("--set", "consentd.sidecar.tls.secret=tls,consentd.sidecar.tls.admin=true")["initContainers"]
        self.assertEqual(env(consentd)["CONSENTD_TLS_LISTENERS"], "admin")
        self.assertEqual(consentd["startupProbe"]["httpGet"]["port"], "consentd-probes")
        with self.assertRaisesRegex(AssertionError, "sidecar.tls: no listener would serve it"):
            sidecar("--set", "consentd.sidecar.tls.secret=tls")

    def test_cert_manager_fills_the_secret_that_is_mounted(self):
        rendered = objects(*case("recorder-tls"))
        certificate, service = only(rendered, "Certificate"), only(rendered, "Service")["metadata"]["name"]
        ((_, pod),) = pod_specs(rendered)
        secret = next(v for v in pod["volumes"] if v["name"] == "consentd-tls")["secret"]["secretName"]
        self.assertEqual(certificate["spec"]["secretName"], secret)
        self.assertIn(f"{service}.consent.svc", certificate["spec"]["dnsNames"])
        self.assertEqual(certificate["spec"]["issuerRef"]["kind"], "ClusterIssuer")

    def test_roles_are_in_the_configuration_and_need_certificates(self):
        config = only(objects(*case("recorder-tls")), "ConfigMap")["data"]["consentd.toml"]
        self.assertEqual(tomllib.loads(config)["roles"]["privacy.internal"], ["record", "erase"])
        both = ["--set-string", "config=[whatsapp]\nmeta_user_agents = []"]
        config = only(objects(*case("recorder-tls"), *both), "ConfigMap")["data"]["consentd.toml"]
        self.assertEqual(set(tomllib.loads(config)), {"whatsapp", "roles"})
        for message, arguments in [
                ("recorder.tls.clientCASecret is needed by roles", ["--set", "recorder.tls.clientCASecret="]),
                ("a table .roles. in config too", ["--set-string", "config=[roles]\na = []"]),
                ("roles", ["--set", "roles.a={rule}"])]:
            with self.assertRaisesRegex(AssertionError, message):
                objects(*case("recorder-tls"), *arguments)

    def test_checks_over_the_network_are_anonymous_only_where_nothing_grants_roles(self):
        def anonymous(*arguments):
            (pod,) = [spec for _, spec in pod_specs(objects(*arguments))]
            return env(pod["containers"][0]).get("CONSENTD_ANONYMOUS_ROLES")
        self.assertEqual(anonymous(*case("standalone")), "check")
        self.assertIsNone(anonymous(*case("standalone-tls")))
        self.assertEqual(anonymous(*case("standalone-tls"), "--set", "standalone.anonymousRoles={check,watch}"), "check,watch")
        with self.assertRaisesRegex(AssertionError, "nobody could check"):
            anonymous(*case("standalone"), "--set-json", "standalone.anonymousRoles=[]")

    def test_without_a_certificate_nothing_else_of_tls_is_accepted(self):
        for part in ["recorder", "standalone", "receiver"]:
            for setting in ["clientCASecret=ca", "admin=true"]:
                with self.assertRaisesRegex(AssertionError, f"{part}.tls.secret is needed"):
                    objects(*case(part), "--set", f"{part}.tls.{setting}")


class Scaling(unittest.TestCase):
    def test_recorders_scale_on_cpu_and_on_recordings_that_wait(self):
        cpu, waiting = only(objects(*case("recorder-tls")), "HorizontalPodAutoscaler")["spec"]["metrics"]
        self.assertEqual(cpu["resource"]["name"], "cpu")
        metric = waiting["pods"]["metric"]
        page = read(os.path.join(HERE, "..", "..", "docs", "metrics.md"))
        row = next(line for line in page.splitlines() if line.startswith(f"| `{metric['name']}{{"))
        for label, value in metric["selector"]["matchLabels"].items():
            self.assertIn(f"`{label}`", row)
            self.assertIn(f"`{value}`", row)
        (cpu,) = only(objects(*case("recorder")), "HorizontalPodAutoscaler")["spec"]["metrics"]
        self.assertEqual(cpu["resource"]["target"]["averageUtilization"], 70)

    def test_an_autoscaler_and_a_number_of_replicas_do_not_contend(self):
        for name in ["recorder-tls", "receiver-tls"]:
            rendered = objects(*case(name))
            self.assertNotIn("replicas", only(rendered, "Deployment")["spec"])
            self.assertEqual(only(rendered, "HorizontalPodAutoscaler")["spec"]["minReplicas"], 2)
        with self.assertRaisesRegex(AssertionError, "maxReplicas is 6, and replicas, the fewest, 7"):
            objects(*case("recorder"), "--set", "recorder.replicas=7")


# What the API server refuses to change in an object that exists.
IMMUTABLE = {
    "Deployment": ["selector"],
    "StatefulSet": ["selector", "serviceName", "volumeClaimTemplates", "podManagementPolicy"],
    "Job": ["selector", "template", "completions"],
    "Service": ["clusterIP"],
}


def upgrade_faults(before, now):
    """Why an upgrade from these objects would fail, or lose some."""
    now = {(o["kind"], o["metadata"]["name"]): o for o in now}
    for o in before:
        key = (o["kind"], o["metadata"]["name"])
        if key not in now:
            yield f"{' '.join(key)} would be deleted"
            continue
        for field in IMMUTABLE.get(o["kind"], []):
            if o["spec"].get(field) != now[key]["spec"].get(field):
                yield f"{' '.join(key)}: {field} cannot be changed"
        # A Service or policy of the version before selects the pods of this one, and the other way round.
        selector = (o.get("spec") or {}).get("selector") or {}
        labels = now[key].get("spec", {}).get("template", {}).get("metadata", {}).get("labels")
        if labels is not None and not selector.get("matchLabels", {}).items() <= labels.items():
            yield f"{' '.join(key)}: pods have labels that its selector does not match"


class Upgrade(unittest.TestCase):
    """Releases of former versions of the chart. Keep the golden files of each version here when it is released."""

    def test_every_released_version_can_be_upgraded_with_the_same_values(self):
        compared = 0
        for folder in sorted(glob.glob(os.path.join(HERE, "released", "*"))):
            for path in sorted(glob.glob(os.path.join(folder, "*.yaml"))):
                chart, arguments = EVERYTHING[os.path.basename(path)[:-5]]
                before = [o for o in yaml.safe_load_all(read(path)) if o]
                # A Job is made anew for each release, by its name.
                faults = [f for f in upgrade_faults(before, objects(*arguments, chart=chart)) if not f.startswith("Job ")]
                self.assertEqual(faults, [], path)
                compared += len(before)
        self.assertGreater(compared, 20)

    def test_values_of_a_former_version_are_enough(self):
        # `helm upgrade --reuse-values` leaves the chart's new defaults out, as a null does here.
        added = ["roles", "sidecar.tls", "recorder.tls", "recorder.autoscaling.inFlight", "receiver.tls", "receiver.autoscaling",
                 "standalone.tls", "standalone.anonymousRoles", "monitoring.serviceMonitor", "monitoring.tlsConfig"]
        released = os.listdir(os.path.join(HERE, "released", "0.1.0"))
        for name in sorted(file[:-5] for file in released):
            chart, arguments = EVERYTHING[name]
            prefix = "consentd." if chart == SENDER else ""
            nulls = [word for value in added for word in ("--set", f"{prefix}{value}=null")]
            with self.subTest(case=name):
                self.assertEqual(template(chart, *arguments, *nulls), template(chart, *arguments))

    def test_what_an_upgrade_cannot_change_is_noticed(self):
        before = [o for o in yaml.safe_load_all(read(os.path.join(HERE, "golden", "standalone.yaml"))) if o]
        self.assertEqual(list(upgrade_faults(before, before)), [])
        for change, fault in [
                (lambda s: s["selector"]["matchLabels"].update({"a": "b"}), "selector cannot be changed"),
                (lambda s: s["volumeClaimTemplates"][0]["spec"]["resources"]["requests"].update(storage="1Gi"),
                 "volumeClaimTemplates cannot be changed"),
                (lambda s: s["template"]["metadata"]["labels"].clear(), "does not match")]:
            now = json.loads(json.dumps(before))
            change(only(now, "StatefulSet")["spec"])
            self.assertRegex(" ".join(upgrade_faults(before, now)), fault)
        self.assertRegex(" ".join(upgrade_faults(before, [])), "would be deleted")


class Values(unittest.TestCase):
    def test_the_table_of_values_is_current(self):
        done = subprocess.run([os.environ.get("HELM_DOCS", "helm-docs"), "--chart-search-root", CHART,
                               "--sort-values-order", "file", "--dry-run"], capture_output=True, text=True)
        self.assertEqual(done.returncode, 0, done.stderr)
        path = os.path.join(CHART, "README.md")
        text = done.stdout.rstrip() + "\n"
        if UPDATE:
            with open(path, "w") as file:
                file.write(text)
        self.assertEqual(text, read(path), "scripts/chart --update")

    def refused(self, message, *arguments):
        done = helm("template", "test", CHART, "--kube-version", "1.34.0", *arguments)
        self.assertNotEqual(done.returncode, 0, f"{arguments} was not refused")
        self.assertRegex(done.stderr, message)

    def test_what_is_missing_is_named(self):
        self.refused("ledger.url is needed", "--set", "recorder.enabled=true,recorder.tokenSecret=t")
        self.refused("recorder.tokenSecret is needed", "--set", "recorder.enabled=true,ledger.url=redis://r")
        self.refused("receiver.secret is needed", "--set", "receiver.enabled=true,ledger.url=redis://r,config=a")
        self.refused("config is needed by receivers", "--set", "receiver.enabled=true,ledger.url=redis://r,receiver.secret=s")
        self.refused("standalone.tokenSecret is needed", "--set", "standalone.enabled=true")
        self.refused("ingress.host is needed", *case("receiver"), "--set", "receiver.ingress.host=")

    def test_what_is_wrong_is_refused_by_the_schema(self):
        self.refused("pairs", "--set", "pairs=-1")
        self.refused("'?unknown'?", "--set", "sidecar.unknown=1")
        self.refused("ledger.?/?url", "--set", "ledger.url=redis://user:secret@host")
        self.refused("repository|digest", "--set", "image.digest=abc")
        self.refused("maxRequestMiB", "--set", "sidecar.maxRequestMiB=16")
        self.refused("memoryMiB is 64, and 1000000 pairs", *case("recorder"), "--set", "pairs=1000000,recorder.resources.memoryMiB=64")

    def test_an_older_kubernetes_is_refused(self):
        done = helm("template", "test", CHART, "--kube-version", "1.29.0")
        self.assertNotEqual(done.returncode, 0)

    def test_the_schema_names_every_value_and_no_other(self):
        def keys(values, schema, path=""):
            known = set(schema["properties"]) - ({"global"} if not path else set())
            self.assertEqual(known, set(values), path)
            for key, value in values.items():
                below = schema["properties"][key]
                # A map that is empty by default, such as an issuer, has no values to be compared.
                if value and isinstance(value, dict) and "properties" in below:
                    keys(value, below, f"{path}.{key}")
        schema = json.loads(read(os.path.join(CHART, "values.schema.json")))
        jsonschema.Draft7Validator.check_schema(schema)
        keys(yaml.safe_load(read(os.path.join(CHART, "values.yaml"))), schema)


if __name__ == "__main__":
    sys.argv = [argument for argument in sys.argv if argument != "--update"]
    unittest.main(verbosity=1)
