// Package config turns the YAML file of sds-server into a checked Config.
//
// It is the first step of the flow: everything that the other parts are built from comes out of Load, and nothing else in
// the program reads the file or the environment. The way of one file: strict decoding of the YAML (every key known, every
// value of its kind, each with its position), overrides from the environment, defaults, relative file names made absolute,
// validation, and last the refusal of keys whose feature is not built yet.
//
// Invariants: Load answers with a Config that passed every rule, or with Problems that hold every problem at once, never
// with both; a Config is not changed after Load; nothing here keeps package state. It is the only importer of viper.
package config

import (
	"io/fs"
	"path/filepath"
	"time"
)

// Config is the whole configuration file, key by key. Durations are in Go's form ("5m"), file names are absolute after Load.
type Config struct {
	// DataDir is where the store lives; default /var/lib/sds-server.
	DataDir string `mapstructure:"data_dir" file:"name"`
	Seal    Seal   `mapstructure:"seal"`
	Store   Store  `mapstructure:"store"`
	// Replica is the name of this replica; default the host name.
	Replica            string              `mapstructure:"replica"`
	XDS                XDS                 `mapstructure:"xds"`
	Admin              Admin               `mapstructure:"admin"`
	HTTP               HTTP                `mapstructure:"http"`
	Challenges         Challenges          `mapstructure:"challenges"`
	Issuers            []Issuer            `mapstructure:"issuers"`
	Certificates       []Certificate       `mapstructure:"certificates"`
	ValidationContexts []ValidationContext `mapstructure:"validation_contexts"`
	SessionTicketKeys  []SessionTicketKeys `mapstructure:"session_ticket_keys"`
	GenericSecrets     []GenericSecret     `mapstructure:"generic_secrets"`
	Groups             []Group             `mapstructure:"groups"`
	Rollout            Rollout             `mapstructure:"rollout"`
	Audit              Audit               `mapstructure:"audit"`
	// Drills allows the drill command; default false.
	Drills bool `mapstructure:"drills"`

	origin *origin
}

// Seal says what the store is sealed with.
type Seal struct {
	// KeyFile holds an age identity. It must not lie below DataDir; default /etc/sds-server/seal.key.
	KeyFile string `mapstructure:"key_file" file:"key"`
}

// Store selects the engine of the durable state.
type Store struct {
	// Backend is "bbolt" (default) or "etcd".
	Backend string `mapstructure:"backend"`
	// Etcd is only for Backend "etcd".
	Etcd Etcd `mapstructure:"etcd"`
}

// Etcd is how an etcd cluster is reached.
type Etcd struct {
	// Endpoints are http or https URLs.
	Endpoints []string `mapstructure:"endpoints"`
	// TLS is nil for plain connections.
	TLS *EtcdTLS `mapstructure:"tls"`
	// Prefix begins and ends with a slash; default /sds-server/.
	Prefix string `mapstructure:"prefix"`
}

// EtcdTLS is the client side of TLS to etcd.
type EtcdTLS struct {
	CAFile   string `mapstructure:"ca_file" file:"cert"`
	CertFile string `mapstructure:"cert_file" file:"cert"`
	KeyFile  string `mapstructure:"key_file" file:"key"`
}

// XDS is the edge towards the Envoys.
type XDS struct {
	// Listeners has at least one element.
	Listeners []Listener `mapstructure:"listeners"`
	Limits    Limits     `mapstructure:"limits"`
}

// Listener is one socket that speaks SDS. It is a Unix socket, mutual TLS over TCP, or plaintext TCP on loopback.
type Listener struct {
	// Address is unix:///PATH or IP:PORT.
	Address string `mapstructure:"address"`
	// Mode of the Unix socket, without any right for others; default 0600.
	Mode fs.FileMode `mapstructure:"mode"`
	// Owner of the Unix socket, USER or USER:GROUP (see ParseOwner); default our own.
	Owner string `mapstructure:"owner"`
	// Groups that this listener may serve. Required without TLS; with TLS none means every group.
	Groups []string `mapstructure:"groups"`
	// TLS is nil on a Unix socket and on a plaintext listener.
	TLS *ListenerTLS `mapstructure:"tls"`
	// Insecure allows plaintext TCP, on loopback only.
	Insecure bool `mapstructure:"insecure"`
}

// ListenerTLS is the server side of mutual TLS; all three files are required.
type ListenerTLS struct {
	CertFile     string `mapstructure:"cert_file" file:"cert"`
	KeyFile      string `mapstructure:"key_file" file:"key"`
	ClientCAFile string `mapstructure:"client_ca_file" file:"cert"`
}

// Limits bound what one peer (an authenticated identity) or stream can ask for. All are 1 or more.
type Limits struct {
	// StreamsPerPeer is at once; default 20,000.
	StreamsPerPeer int `mapstructure:"streams_per_peer"`
	// NamesPerStream is subscriptions at once; default 20,000.
	NamesPerStream int `mapstructure:"names_per_stream"`
	// NewStreamsPerSecond is for one peer; default 2,000.
	NewStreamsPerSecond int `mapstructure:"new_streams_per_second"`
	// RequestsPerStreamPerSecond only slows the reading of a stream; default 20,000.
	RequestsPerStreamPerSecond int `mapstructure:"requests_per_stream_per_second"`
	// AliasesPerNode is names that are no secret's own and are covered by a certificate; default 1,000.
	AliasesPerNode int `mapstructure:"aliases_per_node"`
	// NodesPerIdentity is different node ids; default 1,000.
	NodesPerIdentity int `mapstructure:"nodes_per_identity"`
}

// Admin is the operator API for the command line.
type Admin struct {
	// Address is unix:///PATH; default unix:///run/sds-server/admin.sock.
	Address string `mapstructure:"address"`
	// Users may connect besides root and our own user: names or numbers (see ParseUser).
	Users []string `mapstructure:"users"`
}

// HTTP serves metrics, health and the status page.
type HTTP struct {
	// Address is IP:PORT; default 127.0.0.1:18001. Another address than loopback needs TLS or Insecure.
	Address string `mapstructure:"address"`
	// Hosts are answered besides loopback names; others get 421.
	Hosts []string `mapstructure:"hosts"`
	// TLS is nil for plain HTTP.
	TLS *ServerTLS `mapstructure:"tls"`
	// Insecure allows plain HTTP on another address than loopback.
	Insecure bool `mapstructure:"insecure"`
}

// ServerTLS is the server side of TLS without client certificates.
type ServerTLS struct {
	CertFile string `mapstructure:"cert_file" file:"cert"`
	KeyFile  string `mapstructure:"key_file" file:"key"`
}

// Challenges says which kinds of ACME challenge can be answered; nil or empty means that kind cannot.
type Challenges struct {
	HTTP01    *ChallengeListener `mapstructure:"http-01"`
	TLSALPN01 *ChallengeListener `mapstructure:"tls-alpn-01"`
	DNS01     []DNSProvider      `mapstructure:"dns-01"`
}

// ChallengeListener is the socket to which Envoy routes challenges.
type ChallengeListener struct {
	// Address is IP:PORT.
	Address string `mapstructure:"address"`
}

// DNSProvider is one way to publish DNS-01 records; certificates name it.
type DNSProvider struct {
	Name string `mapstructure:"name"`
	// Provider is lego's code, such as rfc2136.
	Provider string `mapstructure:"provider"`
	// EnvFile holds the provider's settings as KEY=VALUE lines.
	EnvFile string `mapstructure:"env_file" file:"key"`
	// Resolvers are IP:PORT; default those of the system.
	Resolvers   []string    `mapstructure:"resolvers"`
	Propagation Propagation `mapstructure:"propagation"`
}

// Propagation is how long records are waited for.
type Propagation struct {
	// Attempts is 1 or more; default 12.
	Attempts int `mapstructure:"attempts"`
	// Interval between attempts; default 10 s.
	Interval time.Duration `mapstructure:"interval"`
	// Margin is waited after the records were seen; default 30 s.
	Margin time.Duration `mapstructure:"margin"`
}

// Issuer is one ACME certificate authority with our account there. Exactly one of CA and Directory is set in the file;
// after Load Directory always is.
type Issuer struct {
	Name string `mapstructure:"name"`
	// CA is a short code (see Directory).
	CA string `mapstructure:"ca"`
	// Directory is the https URL of the ACME directory.
	Directory string `mapstructure:"directory"`
	// CAFile is the trust for the directory's HTTPS; default the system's roots.
	CAFile string `mapstructure:"ca_file" file:"cert"`
	// RootsFile holds the roots that issued chains must reach; default the system's roots.
	RootsFile string `mapstructure:"roots_file" file:"cert"`
	// Roots is "checked" (default) or "unchecked".
	Roots string `mapstructure:"roots"`
	Email string `mapstructure:"email"`
	// AcceptTOS must be true.
	AcceptTOS bool `mapstructure:"accept_tos"`
	// EAB is nil where the authority wants no external account binding.
	EAB *EAB `mapstructure:"eab"`
	// Profile asked for where the certificate names none; default the authority's choice.
	Profile string `mapstructure:"profile"`
	// PreferredChain is the common name of the wanted root.
	PreferredChain string   `mapstructure:"preferred_chain"`
	Budget         Budget   `mapstructure:"budget"`
	Maintenance    []Period `mapstructure:"maintenance"`
	// StatusURL is a Statuspage JSON.
	StatusURL  string     `mapstructure:"status_url"`
	Revocation Revocation `mapstructure:"revocation"`
}

// EAB is the external account binding of RFC 8555, Section 7.3.4.
type EAB struct {
	KID string `mapstructure:"kid"`
	// HMACKeyFile holds the key in base64url, as the authority shows it.
	HMACKeyFile string `mapstructure:"hmac_key_file" file:"key"`
}

// Budget changes the preset limits of an authority.
type Budget struct {
	// Share of each limit that ordinary work may use, above 0 and up to 1; default 0.8.
	Share  float64 `mapstructure:"share"`
	Limits []Limit `mapstructure:"limits"`
}

// Limit is one token bucket.
type Limit struct {
	// Name is one of budget.Names.
	Name string `mapstructure:"name"`
	// Burst is the capacity, 1 or more.
	Burst int `mapstructure:"burst"`
	// Refill is the time for one token.
	Refill time.Duration `mapstructure:"refill"`
}

// Period is a span of time, From before To.
type Period struct {
	From time.Time `mapstructure:"from"`
	To   time.Time `mapstructure:"to"`
}

// Revocation is another account key, for revoking only.
type Revocation struct {
	KeyFile string `mapstructure:"key_file" file:"key"`
}

// Certificate is a secret that is issued by ACME.
type Certificate struct {
	// Name is the SDS resource name.
	Name string `mapstructure:"name"`
	// DNSNames are lower case after Load; together with IPAddresses 1 to 100.
	DNSNames    []string `mapstructure:"dns_names"`
	IPAddresses []string `mapstructure:"ip_addresses"`
	// Issuers are names of issuers in the order of failover.
	Issuers []string `mapstructure:"issuers"`
	// Challenge is http-01 (default), tls-alpn-01 or dns-01.
	Challenge string `mapstructure:"challenge"`
	// DNS is the name of a DNSProvider, for dns-01 only.
	DNS string `mapstructure:"dns"`
	// KeyType is ecdsa-p256 (default), ecdsa-p384, rsa-2048, rsa-3072 or rsa-4096.
	KeyType string `mapstructure:"key_type"`
	// Profile overrides that of the issuer.
	Profile     string      `mapstructure:"profile"`
	RenewBefore RenewBefore `mapstructure:"renew_before"`
	// Backup is nil where none is kept.
	Backup *Backup `mapstructure:"backup"`
}

// Backup is the second certificate that is kept ready: exactly one of a second issuer and an imported pair.
type Backup struct {
	Issuer string `mapstructure:"issuer"`
	Secret string `mapstructure:"secret"`
}

// ValidationContext is a secret made of CA certificates.
type ValidationContext struct {
	Name    string   `mapstructure:"name"`
	CAFiles []string `mapstructure:"ca_files" file:"cert"`
}

// SessionTicketKeys is a secret of TLS session ticket keys that the server makes and rotates.
type SessionTicketKeys struct {
	Name string `mapstructure:"name"`
	// Rotate is the time between new keys; default 12 h.
	Rotate time.Duration `mapstructure:"rotate"`
	// Keep is how many keys are served, 1 or more; default 3.
	Keep int `mapstructure:"keep"`
}

// GenericSecret is a secret with the content of a file.
type GenericSecret struct {
	Name string `mapstructure:"name"`
	File string `mapstructure:"file" file:"key"`
}

// Group is a node group: Envoys that are moved together and may have the same secrets.
type Group struct {
	Name string `mapstructure:"name"`
	// Identities are globs: a URI, dns:NAME, or unix:uid=N. "*" is any run of characters but "/".
	Identities []string `mapstructure:"identities"`
	// Deny are the same globs; they win.
	Deny []string `mapstructure:"deny"`
	// Secrets are globs over secret names. "*" is any run of characters.
	Secrets []string `mapstructure:"secrets"`
	// Verify is nil where the group is not probed.
	Verify *Verify `mapstructure:"verify"`
}

// Verify says where the group's certificates are served.
type Verify struct {
	Endpoints []Endpoint `mapstructure:"endpoints"`
	// NodePort is probed at the address of each node; 0 means no.
	NodePort int `mapstructure:"node_port"`
	// ServerNames are asked for; default those of the certificate.
	ServerNames []string `mapstructure:"server_names"`
	RootsFile   string   `mapstructure:"roots_file" file:"cert"`
	// Timeout of one handshake; default 10 s.
	Timeout time.Duration `mapstructure:"timeout"`
}

// Endpoint is one address to probe, and the node behind it ("" if unknown).
type Endpoint struct {
	Address string `mapstructure:"address"`
	Node    string `mapstructure:"node"`
	// ServerNames are asked for at this address; default those of Verify.
	ServerNames []string `mapstructure:"server_names"`
	// Secrets are the names of the secrets that are served at this address; default all that the node subscribes to.
	Secrets []string `mapstructure:"secrets"`
}

// Rollout says how changes move through the groups.
type Rollout struct {
	// Waves holds every group exactly once; default one wave for each group in the listed order.
	Waves [][]string `mapstructure:"waves"`
	// Promotion is "auto" (default) or "manual".
	Promotion string `mapstructure:"promotion"`
	// Watch is the time of watching for each wave; default 5 m, 0 for none.
	Watch time.Duration `mapstructure:"watch"`
	// AckTimeout runs from the send; default 1 m.
	AckTimeout time.Duration `mapstructure:"ack_timeout"`
	// MinAcked is the share of connected nodes that must ACK in per cent, 1 to 100; default 100.
	MinAcked int `mapstructure:"min_acked"`
	// NodeGrace is how long a disconnected node holds its wave; default 10 m.
	NodeGrace time.Duration `mapstructure:"node_grace"`
	// EmptyGroup is "wait" (default: a group in which no node subscribes to a changed name holds its wave until the deadline) or "skip".
	EmptyGroup string `mapstructure:"empty_group"`
	// RetryAfter is when softly held changes are tried again; default 1 h.
	RetryAfter time.Duration `mapstructure:"retry_after"`
	// UndoWindow is how long after its end a rollout can still be undone; default 30 m.
	UndoWindow time.Duration `mapstructure:"undo_window"`
	Gates      []Gate        `mapstructure:"gates"`
	Hook       Hook          `mapstructure:"hook"`
	Windows    []Window      `mapstructure:"windows"`
	Freeze     []Freeze      `mapstructure:"freeze"`
}

// Gate is a Prometheus query that has to stay low while a wave is watched. At least one of Max and MaxIncrease is set; where both are, both hold.
type Gate struct {
	Name string `mapstructure:"name"`
	// Prometheus is the base URL.
	Prometheus string `mapstructure:"prometheus"`
	// Query is PromQL that returns one number.
	Query string `mapstructure:"query"`
	// Max is the highest value that passes.
	Max *float64 `mapstructure:"max"`
	// MaxIncrease is the highest rise over the value before the wave: a number, or a share of that value.
	MaxIncrease *Amount `mapstructure:"max_increase"`
	// Timeout is how long a value is waited for before the gate has failed; default 1 m. One request takes at most 10 s of it.
	Timeout time.Duration `mapstructure:"timeout"`
}

// Hook is a command that can stop a wave. It runs without a shell.
type Hook struct {
	// Command is an absolute program and its arguments; none means no hook. Others than root and us must not be able to change it.
	Command []string `mapstructure:"command"`
	// Timeout of one run; default 1 m.
	Timeout time.Duration `mapstructure:"timeout"`
}

// Window is a recurring time in which waves may start.
type Window struct {
	// Cron has the five usual fields.
	Cron     string        `mapstructure:"cron"`
	Duration time.Duration `mapstructure:"duration"`
	// TimeZone is an IANA name; default UTC.
	TimeZone string `mapstructure:"time_zone"`
}

// Freeze is a span of time in which no wave starts, From before To.
type Freeze struct {
	From   time.Time `mapstructure:"from"`
	To     time.Time `mapstructure:"to"`
	Reason string    `mapstructure:"reason"`
}

// Audit is where every lifecycle event is written.
type Audit struct {
	// File is made if it is missing. Empty: see AuditFile.
	File string `mapstructure:"file" file:"name"`
	// Retention of entries; default 26280h (3 years).
	Retention time.Duration `mapstructure:"retention"`
}

// AuditFile is the audit file: audit.file, or audit.jsonl in data_dir.
func (c *Config) AuditFile() string {
	if c.Audit.File != "" {
		return c.Audit.File
	}
	return filepath.Join(c.DataDir, "audit.jsonl")
}
