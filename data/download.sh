#!/usr/bin/env bash
# Downloads, verifies and unpacks the six files of smallNORB. See usage() or --help.
# Written for bash 3.2 (macOS) and later, which lacks associative arrays and mapfile.
set -euo pipefail
export LC_ALL=C

here=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
dir=$here/smallNORB
url=${CAPS_TF_NORB_URL:-https://cs.nyu.edu/~ylclab/data/norb-v1.0-small/}
keep_gz=false
max_failures=5 # in a row, each with less than 1 KiB for every second of patience
patience=30    # seconds

# name, sha256 of name.gz, bytes, sha256
table='
smallnorb-5x46789x9x18x6x2x96x96-training-cat.mat  2784e542c1922060691090952b6cd6278879a216c90f81476f0f00256d42cdaa 97220 591ed90c090cb6724593e8de28180bd602095ee8ec82bd1a5ca30b488cd1d06e
smallnorb-5x46789x9x18x6x2x96x96-training-info.mat de7eb932ebe7a4ee16217fead60660d0eb3d23632c2f4d1c51f88c501c17bf32 388820 6b4075d3800ba0c6fa8c46a02f672572abe7b93f7ed82fb7668354a99ef03306
smallnorb-5x46789x9x18x6x2x96x96-training-dat.mat  5ffd6272a07d32695ee1082a26a41a93a37aab8c28da047f8c34ed348d214873 447897624 4813bf104d229583fea8ed57fdc3e9258c927b8dfb43d75412e854a7a9588067
smallnorb-5x01235x9x18x6x2x96x96-testing-cat.mat   ecaf6d5bb8c3bc5eab9cf0258f6d2198dd474e016e374836fc097f2e5ff509ff 97220 591ed90c090cb6724593e8de28180bd602095ee8ec82bd1a5ca30b488cd1d06e
smallnorb-5x01235x9x18x6x2x96x96-testing-info.mat  16adf314226327ee006d1a44db8cfef52773c06c829951d5653a9f6f310248a2 388820 318f817236b7c97af03cd90e07a9cbb4346e20ef83a1118a61eeb50e3b96db7e
smallnorb-5x01235x9x18x6x2x96x96-testing-dat.mat   cf7104eed3e51174d2f65b66d1e5878b9da233b886f161b0d88f4510ba2c7474 447897624 2b1de646c57ffdc259b8fb973a6453e90915248a8fdb4d9df948786bdae72b34
'

usage() {
  cat <<END
Downloads the six files of smallNORB, verifies and unpacks them. Run it again to resume a broken download;
files that are there already and whole are not fetched again.

usage: ./data/download.sh [options]

  --dir DIR         where the files go (default: $here/smallNORB)
  --url BASE        the address that NAME.gz is appended to
                    (default: \$CAPS_TF_NORB_URL, or else https://cs.nyu.edu/~ylclab/data/norb-v1.0-small/)
  --keep-gz         keep the downloaded .gz files beside the unpacked ones
  --checksums FILE  fetch other data in the same format: one file a line, NAME.mat SHA256_OF_GZ BYTES SHA256
                    (blank lines and lines that start with # are skipped)
  --patience SECONDS  break off a transfer that brings less than 1 KiB a second for so long, and try again, five
                    times in all (default: $patience)
  --help            show this text

It needs curl or wget, gzip, and sha256sum or shasum.
END
}

say() { printf '%s\n' "$*"; }

fail() {
  printf 'error: %s\n' "$*" >&2
  exit 1
}

part=''      # the download in progress: kept for resuming unless empty
unpacking='' # the file being unpacked: never kept
clean_up() {
  if [[ -n $unpacking ]]; then rm -f -- "$unpacking"; fi
  if [[ -n $part && ! -s $part ]]; then rm -f -- "$part"; fi
}
trap clean_up EXIT

size_of() {
  local bytes=0
  if [[ -f $1 ]]; then bytes=$(wc -c <"$1"); fi
  printf '%s' "$((bytes))"
}

sha256_of() {
  local sum
  if command -v sha256sum >/dev/null; then sum=$(sha256sum <"$1"); else sum=$(shasum -a 256 <"$1"); fi
  printf '%s' "${sum%% *}"
}

mib() { printf '%s' "$((($1 + 1048575) / 1048576))"; }

# transfer URL FILE: one attempt to append the rest of URL to FILE.
# Sets reason, and outcome to ok, retry, offline (the server was not reached), restart (FILE cannot be continued) or dead.
transfer() {
  local status=000 code=0 log
  if command -v curl >/dev/null; then
    local meter=--silent
    if [[ -t 2 ]]; then meter=--progress-bar; fi
    status=$(curl "$meter" --fail --location --connect-timeout 20 --speed-limit 1024 --speed-time "$patience" \
      --continue-at - --output "$2" --write-out '%{http_code}' --url "$1") || code=$?
    case $code in
      0) outcome=ok reason='' ;;
      5 | 6) outcome=offline reason='cannot find the host' ;;
      7) outcome=offline reason='cannot connect to the host' ;;
      22) explain_status "$status" ;;
      23) fail "$2: cannot be written: is the disk full?" ;;
      28) outcome=retry reason='the transfer timed out' ;;
      47) outcome=dead reason='the server redirects in circles' ;;
      33 | 36) outcome=restart reason='the server cannot resume a download' ;;
      16 | 18 | 35 | 52 | 55 | 56 | 92) outcome=retry reason='the connection broke off' ;;
      *) outcome=dead reason="curl failed with exit code $code" ;;
    esac
  else
    log=$(
      process=$(exec bash -c 'printf %s "$PPID"') # of wget soon
      end_when_slow "$2" "$process" >/dev/null 2>&1 &
      exec wget --quiet --server-response --tries=1 --timeout="$patience" --continue --output-document="$2" "$1" 2>&1
    ) || code=$?
    # The last status line counts: redirections come before it.
    while [[ $log =~ HTTP/[0-9.]+\ ([0-9]{3})(.*) ]]; do status=${BASH_REMATCH[1]} log=${BASH_REMATCH[2]}; done
    case $code:$status in
      0:*) outcome=ok reason='' ;;
      3:*) fail "$2: cannot be written: is the disk full?" ;;
      143:*) outcome=retry reason='the transfer timed out' ;;
      4:000) outcome=offline reason='cannot connect to the host' ;;
      4:*) outcome=retry reason='the connection broke off' ;;
      *:200) outcome=restart reason='the server cannot resume a download' ;;
      6:* | 8:*) explain_status "$status" ;;
      *) outcome=dead reason="wget failed with exit code $code" ;;
    esac
  fi
}

# end_when_slow FILE PROCESS: ends a process under which FILE grows too slowly; wget itself only notices full silence.
end_when_slow() {
  local seconds=0 before size
  before=$(size_of "$1")
  while sleep 1 && kill -0 "$2" 2>/dev/null; do
    seconds=$((seconds + 1))
    if ((seconds < patience)); then continue; fi
    size=$(size_of "$1")
    if ((size - before < 1024 * seconds)); then kill "$2" && return; fi
    before=$size seconds=0
  done
}

explain_status() {
  reason="the server answered $1"
  case $1 in
    3??) outcome=dead reason='the server redirects in circles' ;;
    416) outcome=restart ;;
    408 | 425 | 429 | 5??) outcome=retry ;;
    *) outcome=dead ;;
  esac
}

# download URL FILE: transfers until the file is whole; sets resumed where FILE was put together from pieces.
reached=false
resumed=false
download() {
  local failures=0 best size
  best=$(size_of "$2")
  resumed=false
  while true; do
    size=$(size_of "$2")
    if ((size > 0)); then
      resumed=true
      say "  continuing after $(mib "$size") MiB"
    fi
    transfer "$1" "$2"
    if [[ $outcome == restart ]]; then : >"$2"; fi
    size=$(size_of "$2")
    if ((size > best)); then reached=true; fi
    if [[ $outcome == ok ]] || ((size >= best + 1024 * patience)); then
      best=$size failures=0 reached=true
    fi
    if [[ $outcome == ok ]]; then return; fi
    failures=$((failures + 1))
    # A server that was never reached is a wrong address or no network: waiting seldom helps, telling does.
    if [[ $outcome == dead || ($outcome == offline && $reached == false) ]] || ((failures >= max_failures)); then
      fail "$1: $reason: check the network and the address (another one: --url BASE), then run this again"
    fi
    say "  $reason: trying again"
    if [[ $outcome != restart ]]; then sleep $((failures < patience ? failures : patience)); fi
  done
}

# fetch NAME SHA256: leaves a verified NAME.gz in $dir.
fetch() {
  local gz=$dir/$1.gz found
  if [[ -f $gz ]]; then
    if [[ $(sha256_of "$gz") == "$2" ]]; then return; fi
    say "$1.gz is damaged: fetching it again"
  else
    say "fetching $1.gz"
  fi
  part=$gz.part
  { : >>"$part"; } 2>/dev/null || fail "$dir: cannot write there: choose another directory with --dir DIR"
  found=$(sha256_of "$part")
  if [[ $found != "$2" ]]; then
    download "$url$1.gz" "$part"
    found=$(sha256_of "$part")
  fi
  if [[ $found != "$2" && $resumed == true ]]; then
    say "  the pieces do not fit together: fetching it anew"
    : >"$part"
    download "$url$1.gz" "$part"
    found=$(sha256_of "$part")
  fi
  if [[ $found != "$2" ]]; then
    rm -f -- "$part"
    fail "$url$1.gz: wrong checksum: expected $2, found $found: choose another source with --url BASE"
  fi
  mv -f -- "$part" "$gz"
}

# is_whole FILE BYTES SHA256
is_whole() {
  [[ -f $1 && $(size_of "$1") == "$2" && $(sha256_of "$1") == "$3" ]]
}

# unpack NAME BYTES SHA256: turns NAME.gz into a verified NAME.
unpack() {
  unpacking=$dir/$1.tmp
  gzip -dc -- "$dir/$1.gz" 2>/dev/null >"$unpacking" || fail "$dir/$1.gz: cannot be unpacked: is the disk full?"
  is_whole "$unpacking" "$2" "$3" ||
    fail "$dir/$1.gz: unpacks to $(size_of "$unpacking") bytes with the wrong checksum: expected $2 bytes with sha256 $3"
  mv -f -- "$unpacking" "$dir/$1"
  if [[ $keep_gz == false ]]; then rm -f -- "$dir/$1.gz"; fi
}

while (($#)); do
  option=$1
  shift
  if [[ $option == --*=* ]]; then
    set -- "${option#*=}" "$@"
    option=${option%%=*}
  fi
  case $option in
    --help | -h)
      usage
      exit
      ;;
    --keep-gz) keep_gz=true ;;
    --dir | --url | --checksums | --patience)
      if [[ -z ${1:-} ]]; then fail "$option needs a value: see --help"; fi
      case $option in
        --dir) dir=$1 ;;
        --url) url=$1 ;;
        --patience)
          [[ $1 =~ ^[1-9][0-9]{0,4}$ ]] || fail "--patience must be a number of seconds, not '$1': see --help"
          patience=$1
          ;;
        --checksums)
          { table=$(cat -- "$1"); } 2>/dev/null || fail "$1: cannot be read: --checksums needs a file, see --help"
          checksums=$1
          ;;
      esac
      shift
      ;;
    *) fail "unknown option $option: see --help" ;;
  esac
done
url=${url%/}/

command -v curl >/dev/null || command -v wget >/dev/null || fail "neither curl nor wget found: install one of them"
command -v gzip >/dev/null || fail "gzip not found: install it"
command -v sha256sum >/dev/null || command -v shasum >/dev/null || fail "neither sha256sum nor shasum found: install one of them"
mkdir -p -- "$dir" 2>/dev/null || fail "$dir: cannot be created: choose another directory with --dir DIR"

# What is missing, and the disk space it needs: every unpacked file, and beside it the largest .gz (all with --keep-gz),
# which is no larger than what it unpacks to, less the downloaded pieces that take up space already.
pending='' unpacked=0 largest=0 present=0 line=0
while read -r name gz_sha bytes sha; do
  line=$((line + 1))
  if [[ -z $name || $name == \#* ]]; then continue; fi
  if ! [[ $name =~ ^[A-Za-z0-9][A-Za-z0-9._-]*\.mat$ && $bytes =~ ^[1-9][0-9]{0,15}$ && "$gz_sha $sha" =~ ^[0-9a-f]{64}\ [0-9a-f]{64}$ ]]; then
    fail "${checksums:-$0}: line $line is not NAME.mat SHA256_OF_GZ BYTES SHA256: fix it, or see --help"
  fi
  if [[ -f $dir/$name ]]; then
    if is_whole "$dir/$name" "$bytes" "$sha"; then
      say "$name is there already"
      continue
    fi
    say "$name is damaged: fetching it again"
  fi
  pending+="$name $gz_sha $bytes $sha"$'\n'
  unpacked=$((unpacked + bytes))
  present=$((present + $(size_of "$dir/$name.gz") + $(size_of "$dir/$name.gz.part")))
  if ((bytes > largest)); then largest=$bytes; fi
done <<<"$table"

if [[ $keep_gz == true ]]; then largest=$unpacked; fi
needed=$((unpacked + largest - present))
available=$(df -Pk -- "$dir" | { read -r _ && read -r _ _ _ kib _ && printf '%s' "$((kib * 1024))"; })
if ((needed > available)); then
  fail "$dir: not enough disk space: $(mib "$needed") MiB needed, $(mib "$available") MiB available:" \
    "free some, or choose another directory with --dir DIR"
fi

while read -r name gz_sha bytes sha; do
  if [[ -z $name ]]; then continue; fi
  start=$SECONDS
  fetch "$name" "$gz_sha"
  unpack "$name" "$bytes" "$sha"
  say "  $(mib "$bytes") MiB unpacked and verified, $((SECONDS - start)) s in all"
done <<<"$pending"

say "all files are whole in $dir"
say "next: python data/convert_to_tfrecord.py --dataset=smallNORB"
