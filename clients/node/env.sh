# What `build`, `generate`, `test` and `bench` have in common: the folders that they make, in a cache. Each is
# named by a hash of what it is made from, so that it is made once. To be sourced.

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cache=${CONSENTD_NODE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/consentd-clients/node}

for tool in node npm; do
  command -v $tool >/dev/null || {
    echo "$tool is missing: install Node 20 or later, such as by apt-get install nodejs npm" >&2
    exit 1
  }
done

# A hash of files and folders, by their paths and contents.
hash_of() {
  (cd "$here" && find "$@" -type f -print0 | LC_ALL=C sort -z | xargs -0 sha256sum | sha256sum | cut -c1-16)
}

# Makes the folder of the first argument, if it is not there, by running the others in a temporary one.
make_once() {
  local folder=$1
  shift
  if [ ! -d "$folder" ]; then
    mkdir -p "$cache"
    local temporary
    temporary=$(mktemp -d "$cache/.making.XXXXXX")
    (cd "$temporary" && "$@") >&2
    # Another process may have been faster.
    mv -T "$temporary" "$folder" 2>/dev/null || rm -rf "$temporary"
  fi
  echo "$folder"
}

npm_quietly() {
  npm "$@" --no-audit --no-fund --loglevel=error
}

# The pinned compiler and generator.
install_tools() {
  cp "$here"/package.json "$here"/package-lock.json .
  npm_quietly ci
}

tools_folder() {
  make_once "$cache/tools-$(hash_of package.json package-lock.json)" install_tools
}

# What the registry takes.
build_package() {
  cp -r "$here"/{src,package.json,tsconfig.json,README.md} "$here/../../LICENSE" .
  ln -s "$1/node_modules" node_modules
  node_modules/.bin/tsc
  rm node_modules
  npm pack --silent
}

artifact() {
  local tools folder
  tools=$(tools_folder)
  folder=$(make_once "$cache/build-$(hash_of src package.json package-lock.json tsconfig.json README.md)" \
    build_package "$tools")
  echo "$folder"/consentd-*.tgz
}

# An empty project into which the built artifact is installed, as by anybody who uses it.
install_project() {
  echo '{ "private": true }' >package.json
  npm_quietly install "$1"
}

project_folder() {
  local built
  built=$(artifact)
  make_once "$cache/project-$(sha256sum "$built" | cut -c1-16)" install_project "$built"
}

# What the recipe for BullMQ needs besides the package.
install_recipe() {
  cp "$here/recipes/bullmq/package.json" .
  npm pkg delete dependencies.consentd
  npm_quietly install
}

recipe_folder() {
  make_once "$cache/recipe-$(hash_of recipes/bullmq/package.json)" install_recipe
}
