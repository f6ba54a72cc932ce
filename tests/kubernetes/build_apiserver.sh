#!/bin/bash
# Build kube-apiserver from Debian's source package `kubernetes`, and unpack etcd, kubectl and the plugins of the CNI, into
# a cache folder; print the folder. Nothing is installed, and a second call only prints. It takes 3 to 8 minutes of two
# cores, 3 GB while it builds and 250 MB afterwards. Status 3, with one line on standard error, where it cannot be built: not a Debian that has these packages.
# usage: build_apiserver.sh [CACHE_FOLDER]
set -euo pipefail

fail() { echo "$1" >&2; exit 3; }

RECIPE=2 # raise it when this script builds something else
suite=bookworm
root=${1:-${XDG_CACHE_HOME:-$HOME/.cache}/nfq-enforcer}
done_folder=$root/kubernetes-$suite-$RECIPE
if [ -d "$done_folder" ]; then
	echo "$done_folder"
	exit 0
fi
for tool in apt-get dpkg-deb dpkg-source patch; do
	command -v "$tool" > /dev/null || fail "kube-apiserver cannot be built here: $tool is missing."
done
work=$root/build-$suite-$RECIPE
mkdir -p "$work/lists/partial" "$work/debs"
exec 9> "$work/.lock"
flock 9 # of two builds, the second waits, and finds the result
if [ -d "$done_folder" ]; then
	echo "$done_folder"
	exit 0
fi

# The mirrors of this machine, with the source packages, in a list of sources of our own.
keyring=/usr/share/keyrings/debian-archive-keyring.gpg
options=
[ -e "$keyring" ] && options="[signed-by=$keyring] "
apt-get indextargets --format '$(ORIGIN)|$(REPO_URI)|$(CODENAME)|$(COMPONENT)' 'Created-By: Packages' 2> /dev/null \
	| awk -F '|' -v suite="$suite" -v options="$options" \
		'$1 == "Debian" && index($3, suite) == 1 && $4 == "main" { print "deb " options $2, $3, "main"; print "deb-src " options $2, $3, "main" }' \
	| sort -u > "$work/sources.list"
[ -s "$work/sources.list" ] || fail "kube-apiserver cannot be built here: apt has no package lists of Debian $suite."
apt=(apt-get -q -o "Dir::Etc::SourceList=$work/sources.list" -o Dir::Etc::SourceParts=/dev/null
	-o "Dir::State::Lists=$work/lists" -o "Dir::Cache=$work" -o APT::Sandbox::User=root)
"${apt[@]}" update >&2 || fail "kube-apiserver cannot be built here: the lists of Debian's source packages cannot be loaded."

cd "$work/debs"
"${apt[@]}" download containernetworking-plugins etcd-server kubernetes-client golang-1.19-go golang-1.19-src \
	golang-github-modern-go-reflect2-dev >&2 \
	|| fail "kube-apiserver cannot be built here: packages of Debian cannot be loaded."
"${apt[@]}" --download-only source kubernetes >&2 \
	|| fail "kube-apiserver cannot be built here: Debian's source package kubernetes cannot be loaded."
for package in *.deb; do dpkg-deb --extract "$package" "$work/unpacked"; done
tree=$work/gopath/src/k8s.io/kubernetes
if [ ! -d "$tree" ]; then
	mkdir -p "${tree%/*}"
	dpkg-source --no-check --extract kubernetes_*.dsc "$tree.new" >&2
	# The vendored 1.0.1 crashes when it is compiled with Go 1.18 or newer (an internal function of maps).
	rm -rf "$tree.new/vendor/github.com/modern-go/reflect2"
	cp -r "$work/unpacked/usr/share/gocode/src/github.com/modern-go/reflect2" "$tree.new/vendor/github.com/modern-go/reflect2"
	mv "$tree.new" "$tree"
fi

unset GOFLAGS
export GOROOT=$work/unpacked/usr/lib/go-1.19 GOPATH=$work/gopath GOCACHE=$work/gocache
export GO111MODULE=off CGO_ENABLED=0 GOTOOLCHAIN=local
export PATH=$GOROOT/bin:$PATH
cd "$tree"
if [ ! -e pkg/generated/openapi/zz_generated.openapi.go ]; then
	go build -o "$work/openapi-gen" ./vendor/k8s.io/kube-openapi/cmd/openapi-gen
	packages=$(grep -rlE '^// \+k8s:openapi-gen=true' --include='*.go' pkg cmd vendor/k8s.io staging/src/k8s.io/*/pkg \
		staging/src/k8s.io/api staging/src/k8s.io/apimachinery 2> /dev/null | xargs -n1 dirname | sort -u \
		| sed -e 's#^staging/src/##' -e 's#^vendor/##' | grep -vE '_examples|sample-|testdata|^cmd' \
		| sed -E 's#^(pkg/)#k8s.io/kubernetes/\1#' | sort -u | paste -sd,)
	"$work/openapi-gen" --logtostderr --go-header-file hack/boilerplate/boilerplate.generatego.txt \
		-O zz_generated.openapi -i "$packages" -p k8s.io/kubernetes/pkg/generated/openapi -r "$work/violations" >&2
fi
version=v$(sed -nE 's/^kubernetes \(([0-9.]+\+really)?([0-9.]+).*/\2/p;q' debian/changelog)
minor=${version#*.}
flags="-s -w"
for package in k8s.io/kubernetes/vendor/k8s.io/component-base/version k8s.io/kubernetes/vendor/k8s.io/client-go/pkg/version; do
	flags+=" -X $package.gitVersion=$version -X $package.gitMajor=1 -X $package.gitMinor=${minor%%.*}"
done
go build -ldflags "$flags" -o "$work/kube-apiserver" ./cmd/kube-apiserver >&2

mkdir "$work/result"
mv "$work/kube-apiserver" "$work/unpacked/usr/bin/etcd" "$work/unpacked/usr/bin/kubectl" "$work/result"
mv "$work/unpacked/usr/lib/cni" "$work/result/cni"
mv "$work/result" "$done_folder" # at once, and only when all is there
chmod -R u+w "$work"
rm -rf "$work"
echo "$done_folder"
