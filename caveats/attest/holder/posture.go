package holder

import (
	"bufio"
	"crypto/sha256"
	"io"
	"os"
	"strings"

	"github.com/writ-dev/writ/caveats/attest"
)

// LocalPosture is what Linux says of this host and of the running executable:
// ID of /etc/os-release; its VERSION_ID, or on Debian the point release;
// /etc/machine-id; the SHA-256 of /proc/self/exe. What cannot be read is left out.
func LocalPosture(agent, version string) attest.Posture {
	p := attest.Posture{Agent: agent, Version: version, HostID: firstLine("/etc/machine-id")}
	if f, err := os.Open("/etc/os-release"); err == nil {
		defer f.Close()
		for lines := bufio.NewScanner(f); lines.Scan(); {
			name, value, _ := strings.Cut(lines.Text(), "=")
			switch value = strings.Trim(value, `"'`); name {
			case "ID":
				p.OS = value
			case "VERSION_ID":
				p.Patch = value
			}
		}
	}
	if point := firstLine("/etc/debian_version"); p.OS == "debian" && point != "" {
		p.Patch = point
	}
	if f, err := os.Open("/proc/self/exe"); err == nil {
		defer f.Close()
		h := sha256.New()
		if _, err := io.Copy(h, f); err == nil {
			p.ProcessHash = (*attest.Digest)(h.Sum(nil))
		}
	}
	return p
}

func firstLine(path string) string {
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close()
	lines := bufio.NewScanner(io.LimitReader(f, 4096))
	if !lines.Scan() {
		return ""
	}
	return strings.TrimSpace(lines.Text())
}
