// aedes over mutual TLS with the fleet's rules: the common name decides. Told on the command line, as JSON.
import fs from 'node:fs'
import tls from 'node:tls'
import { Aedes } from 'aedes'

const { ca, cert, key, admin } = JSON.parse(process.argv[2])
const name = client => client.conn.getPeerCertificate().subject.CN
const broker = await Aedes.createBroker({
  authenticate: (client, username, password, done) => {
    client.commonName = name(client)
    done(null, client.id === client.commonName)
  },
  authorizePublish: (client, packet, done) => {
    const { topic } = packet
    const may = client.commonName === admin
      ? topic.startsWith('fleet/notices/') || /^devices\/[^/]+\/down\//.test(topic)
      : topic.startsWith(`devices/${client.commonName}/up/`)
    done(may ? null : new Error('not authorized'))
  },
  authorizeSubscribe: (client, wanted, done) => {
    const { topic } = wanted
    const may = topic.startsWith('fleet/notices/') || (client.commonName === admin
      ? topic.startsWith('devices/+/up/') || /^devices\/[^/]+\/up\//.test(topic)
      : topic.startsWith(`devices/${client.commonName}/down/`))
    done(null, may ? wanted : null)
  }
})
const options = {
  ca: fs.readFileSync(ca),
  cert: fs.readFileSync(cert),
  key: fs.readFileSync(key),
  requestCert: true,
  rejectUnauthorized: true,
  noDelay: true
}
const server = tls.createServer(options, broker.handle)
server.listen({ port: 0, host: '127.0.0.1', backlog: 1024 }, () => console.log(`ready ${server.address().port}`))
