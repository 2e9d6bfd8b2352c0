#!/usr/bin/env bash
# Checks what deploy/ has for others' machines as far as it can be without them: `make lint-deploy`. The tools come from
# PyPI, the Go module proxy and Debian, in fixed versions, into target/lint-deploy.
set -euo pipefail
cd "$(dirname "$0")"

tools=$PWD/../target/lint-deploy
kubernetes=1.34.0
helm=helm.sh/helm/v3/cmd/helm@v3.19.2
compose=github.com/compose-spec/compose-go/v2/cmd@v2.16.2

for tool in python3 go apt-get dpkg-deb systemd-analyze; do
  command -v "$tool" >/dev/null || { echo "lint-deploy: $tool is missing; install it and run this again" >&2; exit 1; }
done
mkdir -p "$tools"
work=$(mktemp -d "$tools/work-XXXXXX")
trap 'rm -rf "$work"' EXIT

# have FILE: is it there, and made by this version of this script and of the list of packages?
have() { [ -e "$1" ] && [ "$1" -nt lint.sh ] && [ "$1" -nt lint-requirements.txt ]; }
if ! have "$tools/installed"; then
  python3 -m venv --clear "$tools/python"
  "$tools/python/bin/pip" install --quiet --disable-pip-version-check --requirement lint-requirements.txt
  GOFLAGS=-mod=mod GOBIN="$tools/helm" go install "$helm"
  GOFLAGS=-mod=mod GOBIN="$tools/compose" go install "$compose"
  # The package is unpacked, not installed: promtool is all that is wanted of it.
  (cd "$work" && apt-get download --quiet prometheus && dpkg-deb --extract prometheus_*.deb "$tools/prometheus")
  touch "$tools/installed"
fi
export PATH="$tools/python/bin:$tools/helm:$tools/prometheus/usr/bin:$PATH"

# step WHAT COMMAND...
step() {
  echo "--- $1"
  shift
  "$@"
}

chart() { helm "$@" --kube-version "$kubernetes" 2> >(grep -v 'found symbolic link' >&2); }
renders() {
  chart template shop helm/millrace "$@" >"$work/rendered.yaml"
  # Two kinds are not Kubernetes' own and have no schema there: ServiceMonitor and PrometheusRule.
  kubernetes-validate --strict --quiet --kubernetes-version "${kubernetes%.*}" "$work/rendered.yaml"
}
composition() { "$tools/compose/cmd" compose/compose.yaml >/dev/null; }
unit() {
  # It looks for the binary, which is not installed here.
  sed 's#^ExecStart=[^ ]*#ExecStart=/bin/true#' systemd/millrace.service >"$work/millrace.service"
  systemd-analyze verify "$work/millrace.service"
  systemd-analyze security --offline=true --threshold=15 --no-pager "$work/millrace.service" | tail -1
}

step scripts shellcheck ./*.sh ./*/*.sh ../.ci/run
step Dockerfile hadolint Dockerfile
step "compose file" composition
step "systemd unit" unit
step "Helm chart" chart lint --strict helm/millrace --values helm/lint-values.yaml
step "Helm chart, everything switched on" renders --values helm/lint-values.yaml
step "Helm chart, the least that must be given" renders \
  --set image.repository=millrace,config=a,passwordSecret=b,allowPlaintext=true
step "alert rules" promtool check rules prometheus/alerts.yaml
step "alert rules' tests" promtool test rules prometheus/alerts_test.yaml
