package config

import (
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"
)

// groups checks who may have what.
func (v *validator) groups() {
	if len(v.Groups) == 0 {
		v.addHint("groups", "empty", "without a group no Envoy may have anything")
	}
	names := map[string]string{}
	for i := range v.Groups {
		g, path := &v.Groups[i], fmt.Sprintf("groups[%d]", i)
		v.uniqueName(names, path+".name", g.Name)
		v.identities(path+".identities", g.Identities)
		v.identities(path+".deny", g.Deny)
		if len(g.Identities) == 0 && !v.isOnListener(g.Name) {
			v.addHint(path+".identities", "empty", "no listener names the group either, so nobody could be in it")
		}
		if len(g.Secrets) == 0 {
			v.addHint(path+".secrets", "empty", `name what its Envoys may have, or "*" for everything`)
		}
		for j, glob := range g.Secrets {
			element := fmt.Sprintf("%s.secrets[%d]", path, j)
			if message := checkGlob(glob); message != "" {
				v.add(element, "%s", message)
			} else if slices.Contains(g.Secrets[:j], glob) {
				v.add(element, "%q is listed twice", glob)
			}
		}
		if g.Verify != nil {
			v.verify(path+".verify", g.Verify)
		}
	}
}

func (v *validator) identities(path string, globs []string) {
	for i, glob := range globs {
		element := fmt.Sprintf("%s[%d]", path, i)
		if message := checkGlob(glob); message != "" {
			v.add(element, "%s", message)
		} else if message := checkIdentity(glob); message != "" {
			v.add(element, "%s", message)
		} else if slices.Contains(globs[:i], glob) {
			v.add(element, "%q is listed twice", glob)
		}
	}
}

// checkIdentity returns what is wrong with the form of an identity, or "".
func checkIdentity(glob string) string {
	if name, ok := strings.CutPrefix(glob, "dns:"); ok {
		plain := strings.ReplaceAll(strings.ToLower(name), "*", "x")
		if message, _ := checkDNSName(plain); message != "" {
			return fmt.Sprintf("%q: want dns:NAME with a DNS name", glob)
		}
		return ""
	}
	if user, ok := strings.CutPrefix(glob, "unix:"); ok {
		uid, ok := strings.CutPrefix(user, "uid=")
		if _, err := strconv.ParseUint(uid, 10, 32); !ok || err != nil {
			return fmt.Sprintf("%q: want unix:uid=N with the number of a user", glob)
		}
		return ""
	}
	scheme, rest, _ := strings.Cut(glob, "://")
	u, err := url.Parse(glob)
	if err != nil || rest == "" || u.Scheme == "" || u.Host == "" || strings.Contains(scheme, "*") {
		return fmt.Sprintf("%q is no identity: want a URI such as spiffe://edge.example/canary/*, dns:NAME or unix:uid=N", glob)
	}
	return ""
}

func (v *validator) isOnListener(group string) bool {
	return slices.ContainsFunc(v.XDS.Listeners, func(l Listener) bool { return slices.Contains(l.Groups, group) })
}

// knownGroup is a problem if no group has the name, or if it stands in before already.
func (v *validator) knownGroup(path, name string, before []string) {
	var names []string
	for _, g := range v.Groups {
		names = append(names, g.Name)
	}
	switch {
	case !slices.Contains(names, name):
		v.addHint(path, fmt.Sprintf("no group is named %q", name), didYouMean(name, names))
	case slices.Contains(before, name):
		v.add(path, "%q is listed twice", name)
	}
}

func (v *validator) verify(path string, verify *Verify) {
	if len(verify.Endpoints) == 0 && verify.NodePort == 0 {
		v.add(path, "needs endpoints or node_port")
	}
	for i, e := range verify.Endpoints {
		element := fmt.Sprintf("%s.endpoints[%d].address", path, i)
		host, port, ok := strings.Cut(e.Address, ":")
		_, _, message := splitAddress(e.Address)
		if ok && message != "" && checkHost(strings.ToLower(host)) == "" { // a name is as good as an address here
			_, _, message = splitAddress("127.0.0.1:" + port)
		}
		if message != "" {
			v.add(element, "%s", message)
		}
		v.serverNames(fmt.Sprintf("%s.endpoints[%d]", path, i), e.ServerNames)
		for j, name := range e.Secrets { // imported ones are not in the configuration: any name may be right
			if name == "" || strings.Contains(name, "*") {
				v.addHint(fmt.Sprintf("%s.endpoints[%d].secrets[%d]", path, i, j), fmt.Sprintf("%q is no name of a secret", name), "list the secrets one by one")
			}
		}
	}
	if verify.NodePort < 0 || verify.NodePort > 65535 {
		v.add(path+".node_port", "want a port from 1 to 65535, got %d", verify.NodePort)
	}
	v.serverNames(path, verify.ServerNames)
	v.positive(path+".timeout", verify.Timeout)
}

// serverNames are names that are asked for in handshakes; path is of what has them.
func (v *validator) serverNames(path string, names []string) {
	for i, name := range names {
		if message, hint := checkDNSName(strings.ToLower(name)); message != "" {
			v.addHint(fmt.Sprintf("%s.server_names[%d]", path, i), message, hint)
		}
	}
}
