package config

// directories has lego's short codes for authorities (https://go-acme.github.io/lego/advanced/caservers/).
func directories() map[string]string {
	return map[string]string{
		"actalis":             "https://acme-api.actalis.com/acme/directory",
		"digicert":            "https://one.digicert.com/mpki/api/v1/acme/v2/directory",
		"freessl":             "https://acmepro.freessl.cn/v2/DV",
		"globalsign":          "https://emea.acme.atlas.globalsign.com/directory",
		"googletrust":         "https://dv.acme-v02.api.pki.goog/directory",
		"googletrust-staging": "https://dv.acme-v02.test-api.pki.goog/directory",
		"letsencrypt":         "https://acme-v02.api.letsencrypt.org/directory",
		"letsencrypt-staging": "https://acme-staging-v02.api.letsencrypt.org/directory",
		"litessl":             "https://acme.litessl.com/acme/v2/directory",
		"peeringhub":          "https://stica.peeringhub.io/acme",
		"sectigo":             "https://acme.sectigo.com/v2/DV",
		"sslcomecc":           "https://acme.ssl.com/sslcom-dv-ecc",
		"sslcomrsa":           "https://acme.ssl.com/sslcom-dv-rsa",
		"zerossl":             "https://acme.zerossl.com/v2/DV90",
	}
}

// Directory returns the ACME directory URL for one of lego's short codes of authorities, such as letsencrypt.
func Directory(code string) (url string, ok bool) {
	url, ok = directories()[code]
	return url, ok
}
